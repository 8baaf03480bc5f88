"""status_pusher: makes the workers do what is wanted. Woken by each committed change, and by what comes due.

A round: read the VMs that were woken, decide (`plan`), place new ones, hold back what is for a worker that answers
nothing (`pace`), note what is about to be sent, send one `vmachines.apply` job per worker. A crash between noting and
sending repeats the command later; the worker knows it by its generation. What became of it is learned from reports and
from the worker's answer, never from a missing answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from master_service.core.errors import NotLeading, SaltError
from master_service.planning.placement import Candidate, place
from master_service.planning.planner import Decision, Do, action_of, backoff, decide
from master_service.planning.vm import VM, Command, Problem
from master_service.reconciler.work_queue import WorkQueue
from master_service.reconciler.worker_backoff import Pace
from master_service.runtime.context import Parts
from master_service.store.dispatch import Sending
from master_service.store.queries import promised
from worker_service.contract import Code

log = structlog.get_logger()
_AGAIN_AFTER_BUG_S: Final = 30.0


class Pusher:
    """The daemon. One VM is never worked on twice at once; a worker that Salt is slow to reach delays no other."""

    def __init__(self, parts: Parts, leading: Callable[[], bool] = lambda: True) -> None:
        self._parts = parts
        self._leading = leading
        self._queue = WorkQueue()
        self._pace = self._new_pace()
        self._sends: set[asyncio.Task[None]] = set()

    def wake(self, uuids: Iterable[str]) -> None:
        """Look at these VMs soon. Any number of wake-ups of one VM collapse."""
        for uuid in uuids:
            self._queue.add(uuid)

    def answered(self, worker: str) -> None:
        """Anything was heard of a worker: nothing is held back from it any more."""
        self.wake(self._pace.answered(worker))

    @property
    def idle(self) -> bool:
        """Whether nothing is to be looked at now; retries may be due later."""
        return self._queue.idle

    async def run(self) -> None:
        """Work until cancelled. May be run again after that."""
        self._queue, self._pace = WorkQueue(), self._new_pace()
        try:
            self.wake([vm.uuid for vm in await self._parts.store.reading.vms()])
            while True:
                await self._round(await self._queue.take())
        finally:
            self._queue.close()
            for task in self._sends:
                task.cancel()
            await asyncio.gather(*self._sends, return_exceptions=True)

    async def _round(self, uuids: list[str]) -> None:
        try:
            sendings = self._paced(await self._decide(uuids))
            # Noted in the round itself, which runs alone: the next one must see what this one has promised.
            noted = await self._parts.store.pushes.sending(sendings, self._parts.clock())
        except NotLeading as err:
            log.warning("pusher_round_refused", why=str(err))
            self._finish(uuids)
            return
        except Exception:
            log.exception("pusher_round_failed", vms=uuids)
            self._finish(uuids, again_s=_AGAIN_AFTER_BUG_S)
            return
        # A VM that somebody changed meanwhile is looked at again at once.
        self._finish({sending.vm.uuid for sending in sendings} - noted, again_s=0)
        self._finish(set(uuids) - {sending.vm.uuid for sending in sendings})
        for worker, batch in _by_worker(sending for sending in sendings if sending.vm.uuid in noted).items():
            self._pace.sending(worker)
            task = asyncio.create_task(self._send(worker, batch), name=f"push {worker}")
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def _decide(self, uuids: list[str]) -> list[Sending]:
        """Decide about these VMs; do at once what needs no worker, return what is to be sent."""
        now = self._parts.clock()
        sendings: list[Sending] = []
        candidates: dict[str, Candidate] | None = None
        for vm in await self._parts.store.reading.vms(uuids):
            decision = decide(vm, now, self._parts.settings)
            if decision.due is not None:
                self._queue.add_after(vm.uuid, (decision.due - now).total_seconds())
            if decision.command is None:
                await self._settle(vm, decision)
                continue
            worker = vm.assumed.worker
            if worker is None or decision.command.elsewhere:
                candidates = candidates if candidates is not None else await self._parts.store.reading.candidates()
                worker = await self._place(vm, decision.command, candidates)
            if worker is not None:
                sendings.append(self._sending(vm, decision.command, worker))
        return sendings

    def _paced(self, sendings: list[Sending]) -> list[Sending]:
        """Those that may go now; the others are looked at again when their worker is due, and then go together."""
        going: list[Sending] = []
        for worker, batch in _by_worker(sendings).items():
            repeated = all(_sent_before(sending) for sending in batch)
            held, due = self._pace.hold(worker, [sending.vm.uuid for sending in batch], repeated=repeated)
            if not held:
                going += batch
            elif due < math.inf:
                for uuid in held:
                    self._queue.add_at(uuid, due)
        return going

    async def _settle(self, vm: VM, decision: Decision) -> None:
        """FOLLOW and CONFIRM: what changes in the database alone."""
        match decision.do:
            case Do.FOLLOW:
                changed = await self._parts.store.wishes.follow(vm.assumed, self._parts.clock())
            case Do.CONFIRM:
                changed = await self._parts.store.wishes.destroyed(vm.assumed, self._parts.clock())
            case _:
                return
        if changed:
            log.info("vm_settled", vm=vm.uuid, name=vm.assumed.name, did=decision.do.value, why=decision.why)
            self._parts.changes.publish([vm.uuid])

    async def _place(self, vm: VM, command: Command, candidates: dict[str, Candidate]) -> str | None:
        """Choose a worker, and count the VM as promised to it; note why there is none."""
        spec = vm.assumed.spec
        tried = vm.current_push.tried if command.elsewhere else ()
        # On one that answers nothing it would wait without need; that one is better than none.
        answering = [candidate for worker, candidate in candidates.items() if not self._pace.failing(worker)]
        placement = place(spec, answering, vm.assumed.pin, tried)
        if placement.worker is None:
            placement = place(spec, candidates.values(), vm.assumed.pin, tried)
        if placement.worker is not None:
            candidates[placement.worker] = promised(candidates[placement.worker], spec.cpu_count, spec.mem_size)
            return placement.worker
        problem = Problem(code=Code.NO_ROOM, message=placement.why)
        wait = self._again_in(vm, command)
        self._queue.add_after(vm.uuid, wait.total_seconds())
        if problem != vm.current_push.problem:
            log.warning("vm_not_placed", vm=vm.uuid, name=vm.assumed.name, why=placement.why)
        await self._parts.store.pushes.unplaced(vm, problem, self._parts.clock(), wait)
        self._parts.changes.publish([vm.uuid])
        return None

    def _sending(self, vm: VM, command: Command, worker: str) -> Sending:
        return Sending(vm=vm, command=command, worker=worker, again_in=self._again_in(vm, command))

    def _again_in(self, vm: VM, command: Command) -> timedelta:
        tries = vm.current_push.attempts_of(command.verb, command.generation)
        return backoff(tries + 1, vm.uuid, self._parts.settings)

    async def _send(self, worker: str, batch: list[Sending]) -> None:
        """Send one job to one worker. Its VMs stay in work until Salt has it, or has refused it."""
        uuids, taken = [sending.vm.uuid for sending in batch], False
        try:
            taken = await self._publish(worker, batch)
        except Exception:
            log.exception("push_failed", worker=worker, vms=uuids)
        finally:
            held = self._pace.sent(worker, failed=not taken)
        self._parts.changes.publish(uuids)
        for sending in batch:
            self._finish([sending.vm.uuid], again_s=sending.again_in.total_seconds() if taken else 0)
        self.wake(held)

    async def _publish(self, worker: str, batch: list[Sending]) -> bool:
        """Whether Salt has taken the job; what it has not taken waits for its worker to be due, not for itself."""
        if not self._leading():
            # Stopped between noting and sending, long enough for another master: that one knows what was noted.
            log.warning("push_not_sent", worker=worker, vms=[s.vm.uuid for s in batch], error="not leading any more")
            return False
        actions = [msgspec.to_builtins(action_of(sending.vm, sending.command)) for sending in batch]
        try:
            jid = await self._parts.salt.publish([worker], "vmachines.apply", {"actions": actions})
        except SaltError as err:
            log.warning("push_not_sent", worker=worker, vms=[s.vm.uuid for s in batch], error=str(err))
            problem = Problem(code=err.code, message=f"{err} {err.hint}".strip())
            refusals = {s.vm.uuid: (s.command, problem, timedelta()) for s in batch}
            await self._parts.store.pushes.refused(worker, refusals, self._parts.clock())
            return False
        await self._parts.store.pushes.sent([sending.vm.uuid for sending in batch], jid)
        for sending in batch:
            log.info(
                "pushed",
                vm=sending.vm.uuid,
                name=sending.vm.assumed.name,
                verb=sending.command.verb,
                generation=sending.command.generation,
                worker=worker,
                jid=jid,
            )
        return True

    def _new_pace(self) -> Pace:
        return Pace(self._parts.settings, lambda: asyncio.get_running_loop().time())

    def _finish(self, uuids: Iterable[str], again_s: float | None = None) -> None:
        for uuid in uuids:
            self._queue.done(uuid)
            if again_s is not None:
                self._queue.add_after(uuid, again_s)


def _by_worker(sendings: Iterable[Sending]) -> dict[str, list[Sending]]:
    grouped: dict[str, list[Sending]] = {}
    for sending in sendings:
        grouped.setdefault(sending.worker, []).append(sending)
    return grouped


def _sent_before(sending: Sending) -> bool:
    push, command = sending.vm.current_push, sending.command
    return push.is_about(command.verb, command.generation) and push.sent_at is not None
