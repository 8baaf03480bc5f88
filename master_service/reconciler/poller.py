"""status_poller: asks all workers for all their VMs, every few minutes and after each gap in the event stream.

Each poll is one Salt job. With every event lost, polling alone converges: it writes the observed states, finds silent
workers, missing and unassigned VMs and stuck steps, confirms destroys by tombstones, and wakes the pusher for every
VM that differs from its desired state.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any, Final

import msgspec
import structlog
from apscheduler.job import Job
from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from master_service.core.clock import Jumps
from master_service.core.errors import MasterError
from master_service.planning.decision import DecisionKind
from master_service.planning.planner import plan
from master_service.planning.vm import VM
from master_service.policy.incidents import stuck_incident
from master_service.policy.poll_digest import Poll
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import is_silence, new_nonce
from master_service.saltapi.signatures import NotBelieved
from master_service.saltapi.untrusted import sanitize_text, validate_list
from worker_service.contract import ListReply

log = structlog.get_logger()

_CLOCK_CHECK_S: Final = 5.0
"""How often the wall clock is checked."""

_GAP_S: Final = 2.0
"""The shortest time between two polls, however many are requested."""

_EARLY_S: Final = 0.1
"""How often early replies are stored while Salt still waits for some worker."""


class Poller:
    """The daemon. `answered` are the minions that gave a proper list in the last poll."""

    def __init__(self, context: Context, pusher: Pusher) -> None:
        self._context = context
        self._pusher = pusher
        self._requested = asyncio.Event()
        self._early: dict[str, dict[str, Any]] = {}
        self._scheduled: Job | None = None
        self._jumps = Jumps(context.clock)
        self._jumped = False
        self.answered: frozenset[str] = frozenset()

    @property
    def idle(self) -> bool:
        """Whether no poll is requested or in progress."""
        return not (self._requested.is_set() or self._early)

    def take_reply(self, nonce: str, minion: str, answer: object) -> None:
        """Take a reply to `vmachines.list` from the event stream, if it belongs to the poll in progress.

        An answer that is not believed does not hide the worker's own, which may come before or after it.
        """
        if nonce in self._early:
            with suppress(NotBelieved):
                self._early[nonce][minion] = self._context.trust.believe_list(minion, answer, nonce)

    def request(self) -> None:
        """Request a poll soon. Any number of requests before it starts collapse into one."""
        self._requested.set()

    async def run(self) -> None:
        """Work until cancelled."""
        scheduler = AsyncIOScheduler(timezone="UTC")
        # Without a grace time, a poll that is due while the process is busy for a second would be skipped.
        self._scheduled = scheduler.add_job(self._on_schedule, self._interval(), coalesce=True, misfire_grace_time=None)
        scheduler.start()
        self.request()
        try:
            while True:
                await self._wait_for_request()
                self._requested.clear()
                await self._poll_and_log()
                await asyncio.sleep(_GAP_S)
        finally:
            self._scheduled = None
            scheduler.shutdown(wait=False)

    async def poll(self) -> None:
        """Run one poll. Replies are stored as they arrive, so a slow worker does not delay the others.

        Raises SaltError if salt-api is down; no worker is then marked unreachable.
        """
        self._check_clock()
        requested_at, nonce = self._context.clock(), new_nonce()
        self._early[nonce] = {}
        try:
            # Times in the future are repaired first: the poll would count as older, and be ignored.
            await self._context.store.clock_repair.settle(requested_at, jumped=self._jumped)
            self._jumped = False
            await self._ask(requested_at, nonce)
        finally:
            del self._early[nonce]

    async def _ask(self, requested_at: datetime, nonce: str) -> None:
        settings = self._context.settings
        self._context.trust.keys = await self._context.store.workers.keys()
        workers = [worker for worker in self._context.trust.keys if fnmatchcase(worker, settings.workers_target)]
        asking = asyncio.create_task(self._call(workers, nonce))
        answered: dict[str, Any] = {}
        try:
            while not (await asyncio.wait([asking], timeout=_EARLY_S))[0]:
                early, self._early[nonce] = self._early[nonce], {}
                if early:
                    answered |= early
                    await self._store(requested_at, early, {}, complete=False)
            believed, refused = self._believed(await asking, nonce)
            answered |= self._early[nonce] | believed
            await self._store(requested_at, answered, refused, complete=True)
        finally:
            asking.cancel()

    async def _call(self, workers: list[str], nonce: str) -> dict[str, Any]:
        if not workers:
            return {}
        timeout_s = self._context.settings.poll_timeout_s
        return await self._context.salt.call(workers, "vmachines.list", {}, timeout_s, nonce)

    def _believed(self, answers: Mapping[str, Any], nonce: str) -> tuple[dict[str, Any], dict[str, str]]:
        """Return the answers that their workers signed, and why others are refused."""
        believed: dict[str, Any] = {}
        refused: dict[str, str] = {}
        for minion, answer in answers.items():
            if is_silence(answer):
                continue
            try:
                believed[minion] = self._context.trust.believe_list(minion, answer, nonce)
            except NotBelieved as err:
                last = sanitize_text(answer).strip().splitlines()[-1:] if isinstance(answer, str) else []
                refused[minion] = f"its answer {err}" + (f": {last[0][:300]}" if last else "")
        return believed, refused

    async def _store(
        self, requested_at: datetime, answers: Mapping[str, Any], doubted: Mapping[str, str], *, complete: bool
    ) -> None:
        replies, invalid = sort_answers(answers, self._context.settings.vm_report_limit_kib << 10)
        refused = {**doubted, **invalid}
        if complete:
            for minion, why in refused.items():
                log.warning("worker_answer_refused", worker=minion, why=why)
        poll = Poll(requested_at=requested_at, replies=replies, refused=refused, complete=complete)
        vms = await self._context.store.observed.poll(poll)
        self.answered = frozenset(replies) if complete else self.answered | replies.keys()
        for minion in replies:
            self._pusher.answered(minion)
        await self._follow_up(vms)

    async def _on_schedule(self) -> None:
        self.request()

    def _interval(self) -> IntervalTrigger:
        return IntervalTrigger(seconds=self._context.settings.poll_interval_s)

    async def _wait_for_request(self) -> None:
        """Wait until a poll is requested, or the wall clock jumps, which may make all stored times wrong."""
        while not self._requested.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(_CLOCK_CHECK_S):
                    await self._requested.wait()
            if self._check_clock():
                self.request()

    def _check_clock(self) -> bool:
        """Return whether the wall clock has jumped. APScheduler depends on it, so its next poll is set again."""
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
        # VMs that only wait for a time are included: after a restart of the master they have no timer yet.
        now = self._context.clock()
        to_do = plan(vms, now, self._context.settings)
        self._pusher.wake(to_do)
        self._context.changes.publish(vm.uuid for vm in vms)
        stuck = [vm for vm in vms if vm.uuid in to_do and to_do[vm.uuid].kind is DecisionKind.STUCK]
        if stuck:
            await self._context.store.notices.keep([stuck_incident(vm, to_do[vm.uuid].reason) for vm in stuck], now)
        log.debug("polled", workers=len(self.answered), vms=len(vms), to_do=len(to_do))


def sort_answers(answers: Mapping[str, Any], vm_limit: int) -> tuple[dict[str, ListReply], dict[str, str]]:
    """Return valid lists by minion, and the reasons why other answers are invalid. A worker may answer anything.

    `vm_limit`: bytes of one VM's report.
    """
    replies: dict[str, ListReply] = {}
    refused: dict[str, str] = {}
    for minion, answer in answers.items():
        try:
            reply = msgspec.convert(answer, ListReply)
        except (msgspec.ValidationError, RecursionError) as err:
            refused[minion] = sanitize_text(f"answers in an unknown shape: {err}")
            continue
        if why := validate_list(reply, vm_limit):
            refused[minion] = f"its answer cannot be stored: {why}"
        else:
            replies[minion] = reply
    return replies, refused
