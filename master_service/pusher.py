"""status_pusher: makes the workers do what is wanted. Woken by each committed change, and by what comes due.

A round: read the VMs that were woken, decide (`plan`), place new ones, note what is about to be sent, send one
`vmachines.apply` job per worker. A crash between noting and sending repeats the command later; the worker knows it by
its generation. What became of it is learned from reports and from the worker's answer, never from a missing answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from master_service.errors import SaltError
from master_service.facts import VM, Command, Problem
from master_service.parts import Parts
from master_service.placement import Candidate, place
from master_service.plan import Decision, Do, action_of, backoff, decide
from master_service.store.pushes import Sending
from master_service.store.reading import promised
from master_service.work_queue import WorkQueue
from worker_service.contract import Code

log = structlog.get_logger()
_AGAIN_AFTER_BUG_S: Final = 30.0


class Pusher:
    """The daemon. One VM is never worked on twice at once; a worker that Salt is slow to reach delays no other."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._queue = WorkQueue()
        self._sends: set[asyncio.Task[None]] = set()

    def wake(self, uuids: Iterable[str]) -> None:
        """Look at these VMs soon. Any number of wake-ups of one VM collapse."""
        for uuid in uuids:
            self._queue.add(uuid)

    @property
    def idle(self) -> bool:
        """Whether nothing is to be looked at now; retries may be due later."""
        return self._queue.idle

    async def run(self) -> None:
        """Work until cancelled."""
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
            sendings = await self._decide(uuids)
            # Noted in the round itself, which runs alone: the next one must see what this one has promised.
            noted = await self._parts.store.pushes.sending(sendings, self._parts.clock())
        except Exception:
            log.exception("pusher_round_failed", vms=uuids)
            self._finish(uuids, again_s=_AGAIN_AFTER_BUG_S)
            return
        # A VM that somebody changed meanwhile is looked at again at once.
        self._finish({sending.vm.uuid for sending in sendings} - noted, again_s=0)
        self._finish(set(uuids) - {sending.vm.uuid for sending in sendings})
        by_worker: dict[str, list[Sending]] = {}
        for sending in sendings:
            if sending.vm.uuid in noted:
                by_worker.setdefault(sending.worker, []).append(sending)
        for worker, batch in by_worker.items():
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
            if worker is None:
                candidates = candidates if candidates is not None else await self._parts.store.reading.candidates()
                worker = await self._place(vm, decision.command, candidates)
            if worker is not None:
                sendings.append(self._sending(vm, decision.command, worker))
        return sendings

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
        placement = place(spec, candidates.values(), vm.assumed.pin)
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
        uuids = [sending.vm.uuid for sending in batch]
        try:
            await self._publish(worker, batch)
        except Exception:
            log.exception("push_failed", worker=worker, vms=uuids)
        self._parts.changes.publish(uuids)
        for sending in batch:
            self._finish([sending.vm.uuid], again_s=sending.again_in.total_seconds())

    async def _publish(self, worker: str, batch: list[Sending]) -> None:
        actions = [msgspec.to_builtins(action_of(sending.vm, sending.command)) for sending in batch]
        try:
            jid = await self._parts.salt.publish([worker], "vmachines.apply", {"actions": actions})
        except SaltError as err:
            log.warning("push_not_sent", worker=worker, vms=[s.vm.uuid for s in batch], error=str(err))
            problem = Problem(code=err.code, message=f"{err} {err.hint}".strip())
            refusals = {s.vm.uuid: (s.command, problem, s.again_in) for s in batch}
            await self._parts.store.pushes.refused(worker, refusals, self._parts.clock())
            return
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

    def _finish(self, uuids: Iterable[str], again_s: float | None = None) -> None:
        for uuid in uuids:
            self._queue.done(uuid)
            if again_s is not None:
                self._queue.add_after(uuid, again_s)
