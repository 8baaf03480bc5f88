"""status_pusher: sends the commands that lead to the desired states. Committed changes and timers wake it.

In each round it reads the VMs that were woken, decides (`planner`), places new ones, defers commands for silent workers
(`worker_backoff`), records the commands and sends one `vmachines.apply` job per worker. After a crash between recording
and sending, the command is repeated later; the worker knows it by its generation. The outcome is learned from reports
and from the worker's answer, never from a missing answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import timedelta
from typing import Final

import msgspec
import structlog

from master_service.core.errors import NotLeading, SaltError, SaltRequestTooLarge
from master_service.planning.actions import action_of
from master_service.planning.decision import Decision, DecisionKind, backoff
from master_service.planning.placement import Candidate, place
from master_service.planning.planner import decide
from master_service.planning.vm import VM, Command, VMProblem
from master_service.reconciler.work_queue import WorkQueue
from master_service.reconciler.worker_backoff import WorkerBackoff
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import new_nonce
from master_service.store.dispatch import PendingCommand
from master_service.store.queries import promised
from worker_service.contract import Code

log = structlog.get_logger()
_AGAIN_AFTER_BUG_S: Final = 30.0


class Pusher:
    """The daemon. It never works on one VM twice at once; a worker that Salt is slow to reach delays no other."""

    def __init__(self, context: Context, leading: Callable[[], bool] = lambda: True) -> None:
        self._context = context
        self._leading = leading
        self._queue = WorkQueue()
        self._backoff = self._new_backoff()
        self._sends: set[asyncio.Task[None]] = set()

    def wake(self, uuids: Iterable[str]) -> None:
        """Decide on these VMs soon. Any number of wake-ups of one VM collapse."""
        for uuid in uuids:
            self._queue.add(uuid)

    def answered(self, worker: str) -> None:
        """Record a sign of life of a worker: its deferred commands may go."""
        self.wake(self._backoff.reset(worker))

    @property
    def idle(self) -> bool:
        """Whether no VM waits for a decision now. Retries may be due later."""
        return self._queue.idle

    async def run(self) -> None:
        """Work until cancelled. May be run again after that."""
        self._queue, self._backoff = WorkQueue(), self._new_backoff()
        try:
            self.wake([vm.uuid for vm in await self._context.store.queries.vms()])
            while True:
                await self._round(await self._queue.take())
        finally:
            self._queue.close()
            for task in self._sends:
                task.cancel()
            await asyncio.gather(*self._sends, return_exceptions=True)

    async def _round(self, uuids: list[str]) -> None:
        try:
            sendings = self._ready_now(await self._decide(uuids))
            # Recorded in the round itself, because the next round must see the capacity that this one promised.
            recorded = await self._context.store.dispatch.sending(sendings, self._context.clock())
        except NotLeading as err:
            log.warning("pusher_round_refused", why=str(err))
            self._finish(uuids)
            return
        except Exception:
            log.exception("pusher_round_failed", vms=uuids)
            self._finish(uuids, again_s=_AGAIN_AFTER_BUG_S)
            return
        # A VM that was changed meanwhile is decided on again at once.
        self._finish({sending.vm.uuid for sending in sendings} - recorded, again_s=0)
        self._finish(set(uuids) - {sending.vm.uuid for sending in sendings})
        for worker, batch in _by_worker(sending for sending in sendings if sending.vm.uuid in recorded).items():
            self._backoff.sending(worker)
            task = asyncio.create_task(self._send(worker, batch), name=f"push {worker}")
            self._sends.add(task)
            task.add_done_callback(self._sends.discard)

    async def _decide(self, uuids: list[str]) -> list[PendingCommand]:
        """Decide on these VMs; apply decisions that need no worker, and return the commands to send."""
        now = self._context.clock()
        sendings: list[PendingCommand] = []
        candidates: dict[str, Candidate] | None = None
        for vm in await self._context.store.queries.vms(uuids):
            decision = decide(vm, now, self._context.settings)
            if decision.due is not None:
                self._queue.add_after(vm.uuid, (decision.due - now).total_seconds())
            if decision.command is None:
                await self._settle(vm, decision)
                continue
            worker = vm.desired.worker
            if worker is None or decision.command.elsewhere:
                candidates = candidates if candidates is not None else await self._context.store.queries.candidates()
                worker = await self._place(vm, decision.command, candidates)
                vm = replace(vm, worker=candidates[worker].worker if worker else None)  # noqa: PLW2901 - as placed
            if worker is not None:
                sendings.append(self._sending(vm, decision, decision.command, worker))
        return sendings

    def _ready_now(self, sendings: list[PendingCommand]) -> list[PendingCommand]:
        """Return the commands that may go now. The others go together when their worker is due."""
        ready: list[PendingCommand] = []
        for worker, batch in _by_worker(sendings).items():
            repeated = all(_sent_before(sending) for sending in batch)
            held, due = self._backoff.defer(worker, [sending.vm.uuid for sending in batch], repeated=repeated)
            if not held:
                ready += batch
            elif due < math.inf:
                for uuid in held:
                    self._queue.add_at(uuid, due)
        return ready

    async def _settle(self, vm: VM, decision: Decision) -> None:
        """Apply FOLLOW, GIVE_UP and CONFIRM, which change only the database."""
        match decision.kind:
            case DecisionKind.FOLLOW:
                changed = await self._context.store.desired.follow(vm.desired, self._context.clock(), decision.reason)
            case DecisionKind.GIVE_UP:
                changed = await self._context.store.desired.give_up(vm.desired, self._context.clock(), decision.reason)
            case DecisionKind.CONFIRM:
                changed = await self._context.store.desired.destroyed(
                    vm.desired, self._context.clock(), decision.reason
                )
            case _:
                return
        if changed:
            log.info("vm_settled", vm=vm.uuid, name=vm.desired.name, did=decision.kind.value, why=decision.reason)
            self._context.changes.publish([vm.uuid])

    async def _place(self, vm: VM, command: Command, candidates: dict[str, Candidate]) -> str | None:
        """Choose a worker and count the VM as promised to it, or record why no worker fits."""
        spec = vm.desired.spec
        rejected_by = vm.current_dispatch.rejected_by if command.elsewhere else ()
        # A worker that is silent is chosen only if no other one fits.
        answering = [candidate for worker, candidate in candidates.items() if not self._backoff.is_failing(worker)]
        placement = place(spec, answering, vm.desired.pin, rejected_by)
        if placement.worker is None:
            placement = place(spec, candidates.values(), vm.desired.pin, rejected_by)
        if placement.worker is not None:
            candidates[placement.worker] = promised(candidates[placement.worker], spec.cpu_count, spec.mem_size)
            return placement.worker
        problem = VMProblem(code=Code.NO_ROOM, message=placement.reason)
        wait = self._again_in(vm, command)
        self._queue.add_after(vm.uuid, wait.total_seconds())
        if problem != vm.current_dispatch.problem:
            log.warning("vm_not_placed", vm=vm.uuid, name=vm.desired.name, why=placement.reason)
        await self._context.store.dispatch.unplaced(vm, problem, self._context.clock(), wait)
        self._context.changes.publish([vm.uuid])
        return None

    def _sending(self, vm: VM, decision: Decision, command: Command, worker: str) -> PendingCommand:
        cause = decision.reason if command.retry_reason or command.elsewhere else ""
        return PendingCommand(vm=vm, command=command, worker=worker, again_in=self._again_in(vm, command), cause=cause)

    def _again_in(self, vm: VM, command: Command) -> timedelta:
        tries = vm.current_dispatch.attempts_of(command.verb, command.generation)
        return backoff(tries + 1, vm.uuid, self._context.settings)

    async def _send(self, worker: str, batch: list[PendingCommand]) -> None:
        """Send one job to one worker. Its VMs stay in work until Salt has accepted or refused it."""
        uuids, accepted = [sending.vm.uuid for sending in batch], False
        try:
            accepted = await self._publish(worker, batch)
        except Exception:
            log.exception("push_failed", worker=worker, vms=uuids)
        finally:
            held = self._backoff.sent(worker, failed=not accepted)
        self._context.changes.publish(uuids)
        for sending in batch:
            self._finish([sending.vm.uuid], again_s=sending.again_in.total_seconds() if accepted else 0)
        self.wake(held)

    async def _publish(self, worker: str, batch: list[PendingCommand]) -> bool:
        """Hand a job to Salt; return whether Salt took it. Otherwise its commands wait until their worker is due.

        Commands that do not fit into one request become several jobs.
        """
        if not self._leading():
            # This master paused before sending, and another one leads now. That one knows the recorded commands.
            log.warning("push_not_sent", worker=worker, vms=[s.vm.uuid for s in batch], error="not leading any more")
            return False
        actions = [
            msgspec.to_builtins(action_of(sending.vm, sending.command))
            | {"attempt": sending.vm.current_dispatch.attempts_of(sending.command.verb, sending.command.generation) + 1}
            for sending in batch
        ]
        try:
            if worker not in await self._context.store.workers.keys():
                raise SaltError(f"{worker} is not enrolled.", f"Compare its key: saltern workers enroll {worker}")
            jid = await self._context.salt.publish([worker], "vmachines.apply", {"actions": actions}, new_nonce())
        except SaltRequestTooLarge as err:
            if len(batch) > 1:
                half = len(batch) // 2
                return all([await self._publish(worker, part) for part in (batch[:half], batch[half:])])
            await self._refuse_too_large(worker, batch[0], err)
            return True  # the worker is well, and so is Salt
        except SaltError as err:
            log.warning("push_not_sent", worker=worker, vms=[s.vm.uuid for s in batch], error=str(err))
            problem = VMProblem(code=err.code, message=f"{err} {err.hint}".strip())
            refusals = {s.vm.uuid: (s.command, problem, timedelta()) for s in batch}
            await self._context.store.dispatch.refused(worker, refusals, self._context.clock())
            return False
        await self._context.store.dispatch.sent([sending.vm.uuid for sending in batch], jid)
        for sending in batch:
            log.info(
                "pushed",
                vm=sending.vm.uuid,
                name=sending.vm.desired.name,
                verb=sending.command.verb,
                generation=sending.command.generation,
                worker=worker,
                jid=jid,
            )
        return True

    async def _refuse_too_large(self, worker: str, sending: PendingCommand, err: SaltRequestTooLarge) -> None:
        """Record that a command does not fit into a request, even alone."""
        vm, command = sending.vm, sending.command
        log.warning("command_too_large", vm=vm.uuid, name=vm.desired.name, verb=command.verb, error=str(err))
        text = f"The {command.verb} of {vm.desired.name} does not fit into a request to Salt. {err} {err.hint}"
        refusal = (command, VMProblem(code=err.code, message=text), sending.again_in)
        await self._context.store.dispatch.refused(worker, {vm.uuid: refusal}, self._context.clock())

    def _new_backoff(self) -> WorkerBackoff:
        return WorkerBackoff(self._context.settings, lambda: asyncio.get_running_loop().time())

    def _finish(self, uuids: Iterable[str], again_s: float | None = None) -> None:
        for uuid in uuids:
            self._queue.done(uuid)
            if again_s is not None:
                self._queue.add_after(uuid, again_s)


def _by_worker(sendings: Iterable[PendingCommand]) -> dict[str, list[PendingCommand]]:
    grouped: dict[str, list[PendingCommand]] = {}
    for sending in sendings:
        grouped.setdefault(sending.worker, []).append(sending)
    return grouped


def _sent_before(sending: PendingCommand) -> bool:
    dispatch, command = sending.vm.current_dispatch, sending.command
    return dispatch.is_about(command.verb, command.generation) and dispatch.sent_at is not None
