"""status_poller: asks all workers for all their VMs, every few minutes and after each gap in the event stream.

One Salt job per pass. With every event lost this alone converges: it writes what is real, finds silent workers,
missing VMs and strangers, confirms destroys by tombstones, and wakes the pusher for whatever differs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

import msgspec
import structlog
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from master_service.errors import MasterError
from master_service.parts import Parts
from master_service.plan import plan
from master_service.pusher import Pusher
from master_service.store.reports import Poll
from worker_service.contract import ListReply

log = structlog.get_logger()
_NO_ANSWER: Final = "Minion did not return"
"""How Salt says, in the place of an answer, that there is none. Source: salt/client/__init__.py of 3008.3."""

_GAP_S: Final = 2.0
"""At least this long between two polls, however often one is asked for."""


class Poller:
    """The daemon. `answered` are the minions that gave a proper list in the last poll."""

    def __init__(self, parts: Parts, pusher: Pusher) -> None:
        self._parts = parts
        self._pusher = pusher
        self._requested = asyncio.Event()
        self.answered: frozenset[str] = frozenset()

    def request(self) -> None:
        """Ask for a poll soon. Any number of requests before it starts collapse into one."""
        self._requested.set()

    async def run(self) -> None:
        """Work until cancelled."""
        scheduler = AsyncIOScheduler(timezone="UTC")
        scheduler.add_job(
            self._on_schedule, IntervalTrigger(seconds=self._parts.settings.poll_interval_s), coalesce=True
        )
        scheduler.start()
        self.request()
        try:
            while True:
                await self._requested.wait()
                self._requested.clear()
                await self._poll_and_log()
                await asyncio.sleep(_GAP_S)
        finally:
            scheduler.shutdown(wait=False)

    async def poll(self) -> None:
        """One pass. Raises SaltError when salt-api does not answer: then nothing is written, as nothing is known."""
        asked_at = self._parts.clock()
        answers = await self._parts.salt.call(
            self._parts.settings.workers_target, "vmachines.list", {}, self._parts.settings.poll_timeout_s
        )
        replies, refused = sort_answers(answers)
        for minion, why in refused.items():
            log.warning("worker_answer_refused", worker=minion, why=why)
        await self._parts.store.reports.poll(Poll(asked_at=asked_at, replies=replies, refused=refused))
        self.answered = frozenset(replies)
        await self._wake_pusher()

    async def _on_schedule(self) -> None:
        self.request()

    async def _poll_and_log(self) -> None:
        try:
            await self.poll()
        except MasterError as err:
            log.warning("poll_failed", error=str(err), hint=err.hint)
        except Exception:
            log.exception("poll_failed")

    async def _wake_pusher(self) -> None:
        vms = await self._parts.store.reading.vms()
        # Also what only waits for a time: after a restart of the master nobody else has set a timer for it.
        to_do = plan(vms, self._parts.clock(), self._parts.settings)
        self._pusher.wake(to_do)
        self._parts.changes.publish(vm.uuid for vm in vms)
        log.debug("polled", workers=len(self.answered), vms=len(vms), to_do=len(to_do))


def sort_answers(answers: Mapping[str, Any]) -> tuple[dict[str, ListReply], dict[str, str]]:
    """Proper lists by minion, and what is wrong with the other answers. Answers are hostile input until they fit."""
    replies: dict[str, ListReply] = {}
    refused: dict[str, str] = {}
    for minion, answer in answers.items():
        if answer is False or answer == {} or (isinstance(answer, str) and answer.startswith(_NO_ANSWER)):
            continue
        if isinstance(answer, str):
            refused[minion] = f"answers: {answer.strip().splitlines()[-1][:300] if answer.strip() else 'nothing'}"
            continue
        try:
            replies[minion] = msgspec.convert(answer, ListReply)
        except msgspec.ValidationError as err:
            refused[minion] = f"answers in another shape than ours: {err}"
    return replies, refused
