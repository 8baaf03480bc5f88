"""status_poller: asks all workers for all their VMs, every few minutes and after each gap in the event stream.

One Salt job per pass. With every event lost this alone converges: it writes what is real, finds silent workers,
missing VMs, strangers and stuck steps, confirms destroys by tombstones, and wakes the pusher for whatever differs.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Any, Final

import msgspec
import structlog
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from master_service.core.clock import Jumps
from master_service.core.errors import MasterError
from master_service.planning.planner import DecisionKind, plan
from master_service.planning.vm import VM
from master_service.policy.incidents import stuck_incident
from master_service.policy.poll_digest import Poll
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.saltapi.untrusted import sanitize_text, validate_list
from worker_service.contract import ListReply

log = structlog.get_logger()
_NO_ANSWER: Final = "Minion did not return"
"""How Salt says, in the place of an answer, that there is none. Source: salt/client/__init__.py of 3008.3."""

_LOOK_S: Final = 5.0
"""How often the wall clock is looked at."""

_GAP_S: Final = 2.0
"""At least this long between two polls, however often one is asked for."""

_EARLY_S: Final = 0.1
"""While Salt still waits for some worker, what others have answered is kept this often."""


class Poller:
    """The daemon. `answered` are the minions that gave a proper list in the last poll."""

    def __init__(self, parts: Context, pusher: Pusher) -> None:
        self._context = parts
        self._pusher = pusher
        self._requested = asyncio.Event()
        self._early: dict[str, dict[str, Any]] = {}
        self._scheduled: Job | None = None
        self._jumps = Jumps(parts.clock)
        self._jumped = False
        self.answered: frozenset[str] = frozenset()

    @property
    def idle(self) -> bool:
        """Whether no poll is asked for, and none goes on."""
        return not (self._requested.is_set() or self._early)

    def heard(self, mark: str, minion: str, answer: object) -> None:
        """A return of `vmachines.list` came over the event stream: news, if it is of the poll that goes on now."""
        if mark in self._early:
            self._early[mark][minion] = answer

    def request(self) -> None:
        """Ask for a poll soon. Any number of requests before it starts collapse into one."""
        self._requested.set()

    async def run(self) -> None:
        """Work until cancelled."""
        scheduler = AsyncIOScheduler(timezone="UTC")
        # However late: by default a poll that is due while the process is busy for a second would be left out.
        self._scheduled = scheduler.add_job(self._on_schedule, self._interval(), coalesce=True, misfire_grace_time=None)
        scheduler.start()
        self.request()
        try:
            while True:
                await self._until_requested()
                self._requested.clear()
                await self._poll_and_log()
                await asyncio.sleep(_GAP_S)
        finally:
            self._scheduled = None
            scheduler.shutdown(wait=False)

    async def poll(self) -> None:
        """One pass. A silent worker keeps back nobody else's news: what Salt has heard already is kept meanwhile.

        Raises SaltError when salt-api does not answer: then nobody counts as silent, as nothing is known.
        """
        self._look_at_clock()
        asked_at, mark = self._context.clock(), secrets.token_hex(8)
        self._early[mark] = {}
        try:
            # Before anything counts as being of now: it would be older than what is still to come, and not be believed.
            await self._context.store.clock_repair.settle(asked_at, jumped=self._jumped)
            self._jumped = False
            await self._ask(asked_at, mark)
        finally:
            del self._early[mark]

    async def _ask(self, asked_at: datetime, mark: str) -> None:
        settings = self._context.settings
        asking = asyncio.create_task(
            self._context.salt.call(settings.workers_target, "vmachines.list", {}, settings.poll_timeout_s, mark)
        )
        try:
            while not (await asyncio.wait([asking], timeout=_EARLY_S))[0]:
                early, self._early[mark] = self._early[mark], {}
                if early:
                    await self._keep(asked_at, early, complete=False)
            await self._keep(asked_at, await asking, complete=True)
        finally:
            asking.cancel()

    async def _keep(self, asked_at: datetime, answers: Mapping[str, Any], *, complete: bool) -> None:
        replies, refused = sort_answers(answers, self._context.settings.vm_report_limit_kib << 10)
        if complete:
            for minion, why in refused.items():
                log.warning("worker_answer_refused", worker=minion, why=why)
        poll = Poll(asked_at=asked_at, replies=replies, refused=refused, complete=complete)
        vms = await self._context.store.observed.poll(poll)
        self.answered = frozenset(replies) if complete else self.answered | replies.keys()
        for minion in replies:
            self._pusher.answered(minion)
        await self._follow_up(vms)

    async def _on_schedule(self) -> None:
        self.request()

    def _interval(self) -> IntervalTrigger:
        return IntervalTrigger(seconds=self._context.settings.poll_interval_s)

    async def _until_requested(self) -> None:
        """Until somebody asks for a poll, or the wall clock jumps: all times may be wrong then."""
        while not self._requested.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._requested.wait()
            if self._look_at_clock():
                self.request()

    def _look_at_clock(self) -> bool:
        """Whether the wall clock has jumped. APScheduler goes by it: its next poll is counted from now then."""
        if not (seconds := self._jumps.seconds()):
            return False
        log.warning("clock_jumped", seconds=round(seconds))
        self._jumped = True
        if self._scheduled is not None:
            self._scheduled.reschedule(self._interval())
        return True

    async def _poll_and_log(self) -> None:
        try:
            await self.poll()
        except MasterError as err:
            log.warning("poll_failed", error=str(err), hint=err.hint)
        except Exception:
            log.exception("poll_failed")

    async def _follow_up(self, vms: Sequence[VM]) -> None:
        # Also what only waits for a time: after a restart of the master nobody else has set a timer for it.
        now = self._context.clock()
        to_do = plan(vms, now, self._context.settings)
        self._pusher.wake(to_do)
        self._context.changes.publish(vm.uuid for vm in vms)
        stuck = [vm for vm in vms if vm.uuid in to_do and to_do[vm.uuid].kind is DecisionKind.STUCK]
        if stuck:
            await self._context.store.notices.keep([stuck_incident(vm, to_do[vm.uuid].reason) for vm in stuck], now)
        log.debug("polled", workers=len(self.answered), vms=len(vms), to_do=len(to_do))


def sort_answers(answers: Mapping[str, Any], vm_limit: int) -> tuple[dict[str, ListReply], dict[str, str]]:
    """Proper lists by minion, and what is wrong with the other answers. Answers are hostile input until they fit.

    `vm_limit`: bytes of one VM's report.
    """
    replies: dict[str, ListReply] = {}
    refused: dict[str, str] = {}
    for minion, answer in answers.items():
        if answer is False or answer == {} or (isinstance(answer, str) and answer.startswith(_NO_ANSWER)):
            continue
        if isinstance(answer, str):
            told = sanitize_text(answer).strip().splitlines()[-1:] or ["nothing"]
            refused[minion] = f"answers: {told[0][:300]}"
            continue
        try:
            reply = msgspec.convert(answer, ListReply)
        except (msgspec.ValidationError, RecursionError) as err:
            refused[minion] = sanitize_text(f"answers in another shape than ours: {err}")
            continue
        if why := validate_list(reply, vm_limit):
            refused[minion] = f"answers what cannot be kept: {why}"
        else:
            replies[minion] = reply
    return replies, refused
