"""What the API's verbs do: commit what is wanted, wake the pusher, and wait where the contract says that it blocks."""

from __future__ import annotations

import asyncio
import uuid as uuidlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

import msgspec
import structlog

from master_service.core.errors import BadRequest, Conflict, NotFound, SaltError, TooLarge
from master_service.planning.observed import ObservedStatus, last_reported_status
from master_service.planning.outcomes import ONE_SHOT_VERB, Outcome
from master_service.planning.placement import too_large_for_all
from master_service.planning.user_actions import apply_action, apply_modify, evacuate, outcome_of, require_unreachable
from master_service.planning.vm import VM, DesiredState, DesiredStatus
from master_service.policy.audit import Actor
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.store.desired import ChangeRequest
from worker_service.contract import Action, Spec

log = structlog.get_logger()
LONGEST_BLOCK_S: Final = 3600
"""The longest that a verb may be asked to wait."""
_POLL_AFTER_S: Final = 5.0
"""A blocking call that hears nothing for so long asks for a poll: the event may have been lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Operation:
    """One verb that was asked of one VM, and that VM right after it. `id` is of its line in the audit."""

    id: int
    vm: VM


class VmService:
    """What users may do. `actor` says who they are, for the audit."""

    def __init__(self, parts: Context, pusher: Pusher, poller: Poller) -> None:
        self._context = parts
        self._pusher = pusher
        self._poller = poller

    async def create(
        self, spec: Spec, actor: Actor, pin: str | None = None, labels: Mapping[str, str] | None = None
    ) -> VM:
        """Keep a new VM, to be started unless its run policy is manual. Raises NameTaken, TooLarge."""
        if why := too_large_for_all(spec, await self._context.store.queries.workers()):
            raise TooLarge(f"No worker can ever hold {spec.name}: {why}.")
        now = self._context.clock()
        assumed = DesiredState(
            uuid=str(uuidlib.uuid4()),
            name=spec.name,
            owner=actor.name,
            spec=spec,
            status=DesiredStatus.HALTED if spec.run_policy == "manual" else DesiredStatus.RUNNING,
            generation=1,
            user_generation=1,
            version=1,
            created_at=now,
            changed_at=now,
            pin=pin,
            labels=dict(labels or {}),
        )
        await self._context.store.desired.create(assumed, self._asked(actor, "create"))
        self._tell(assumed.uuid)
        return await self.get(assumed.uuid)

    async def get(self, id_or_name: str) -> VM:
        """One VM by uuid or name. Raises NotFound."""
        vm = await self._context.store.queries.vm(id_or_name)
        if vm is None:
            raise NotFound(f"There is no VM {id_or_name!r}.")
        return vm

    async def act(self, id_or_name: str, verb: str, actor: Actor, if_version: int | None = None) -> Operation:
        """Ask for start, suspend, resume, shutdown or destroy. Raises NotFound, Conflict, ChangedMeanwhile."""
        uuid = (await self.get(id_or_name)).uuid
        number = await self._context.store.desired.change(
            uuid, lambda vm: apply_action(vm, verb, self._context.clock(), if_version), self._asked(actor, verb)
        )
        self._tell(uuid)
        return Operation(id=number, vm=await self.get(uuid))

    async def modify(
        self,
        id_or_name: str,
        settings: Mapping[str, str],
        actor: Actor,
        if_version: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> VM:
        """Change where disks are saved, the CD, or the labels. Raises NotFound, Conflict, ChangedMeanwhile."""
        uuid = (await self.get(id_or_name)).uuid
        await self._context.store.desired.change(
            uuid,
            lambda vm: apply_modify(vm, settings, self._context.clock(), if_version, labels),
            self._asked(actor, "modify"),
        )
        self._tell(uuid)
        return await self.get(uuid)

    async def save_retry(self, id_or_name: str, actor: Actor) -> Operation:
        """Let a worker try again to save disks that it could not save. Raises NotFound, Conflict, SaltError.

        Not a wish that is kept, as disks that cannot be saved are not to be tried for ever: one job, told to its worker
        now. Lost on its way it changes nothing, and is asked for again.
        """
        uuid = (await self.get(id_or_name)).uuid
        vm, line = await self._context.store.desired.record_one_shot(
            uuid, _require_failed_save, self._asked(actor, ONE_SHOT_VERB)
        )
        if self._context.store.database.in_dry_run:
            return Operation(id=line, vm=vm)
        action = Action(verb="save_retry", uuid=uuid, generation=vm.observed.generation)
        try:
            jid = await self._context.salt.publish(
                [str(vm.desired.worker)], "vmachines.apply", {"actions": [msgspec.to_builtins(action)]}
            )
        except SaltError as err:
            await self._context.store.operations.one_shot_refused(line, str(err))
            raise
        await self._context.store.operations.one_shot_sent(line, jid)
        return Operation(id=line, vm=vm)

    async def drain(self, worker_id: str, actor: Actor) -> None:
        """Let a worker get no new VM; those on it stay. Raises NotFound."""
        await self._context.store.workers.drain(worker_id, self._asked(actor, "drain"))

    async def undrain(self, worker_id: str, actor: Actor) -> None:
        """Let a worker that was drained or fenced get VMs again. Raises NotFound."""
        await self._context.store.workers.undrain(worker_id, self._asked(actor, "undrain"))
        if not self._context.store.database.in_dry_run:
            await self._poll()  # VMs that wait for a worker are looked at after it

    async def fence(self, worker_id: str, i_have_fenced: str, actor: Actor) -> list[str]:
        """Take its VMs from a worker that is off for certain, and start them elsewhere; their uuids.

        `i_have_fenced` is the worker's id once more: only a person can know it to be off. They start anew from their
        images; the disks that they had stay where they are. Raises NotFound, Conflict when it answers, BadRequest.
        """
        if i_have_fenced != worker_id:
            raise BadRequest([("i_have_fenced", f"say {worker_id} once more: that it is switched off for certain")])
        now = self._context.clock()
        moved = await self._context.store.workers.fence(
            worker_id, require_unreachable, lambda vm: evacuate(vm, now), self._asked(actor, "fence")
        )
        if not self._context.store.database.in_dry_run:
            log.warning("worker_fenced", worker=worker_id, actor=actor.name, vms=moved)
        for uuid in moved:
            self._tell(uuid)
        return moved

    async def wait(self, uuid: str, verb: str, timeout_s: float) -> tuple[VM, Outcome | None]:
        """Wait until it is known what a verb came to; the VM as it is then, and that. None: not within `timeout_s`.

        Raises Conflict when what was told to its worker once, and is not told again, came to nothing.
        """
        with self._context.changes.subscribe() as subscription, suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (outcome := outcome_of(vm := await self.get(uuid), verb)) is None:
                    await self._raise_if_refused(vm, verb)
                    if not await subscription.wait(_POLL_AFTER_S):
                        await self._poll()
                # As it was decided on: what is told again meanwhile may hide a refusal.
                return vm, outcome
        vm = await self.get(uuid)
        return vm, outcome_of(vm, verb)

    async def _poll(self) -> None:
        """Have all workers asked soon, by whichever master it is that works."""
        self._poller.request()
        await self._context.store.database.ask_for_poll()

    async def _raise_if_refused(self, vm: VM, verb: str) -> None:
        line = await self._context.store.operations.newest(vm.uuid, verb) if verb == ONE_SHOT_VERB else None
        if line is not None and line.outcome in (Outcome.REFUSED, Outcome.FAILED):
            raise Conflict(
                f"{verb} of {vm.desired.name} on {vm.desired.worker}: {line.outcome}. {line.detail}",
                "Mend what its worker says, and ask again.",
            )

    def _asked(self, actor: Actor, verb: str) -> ChangeRequest:
        return ChangeRequest(actor=actor, verb=verb, at=self._context.clock(), quota=self._context.settings.quota)

    def _tell(self, uuid: str) -> None:
        if not self._context.store.database.in_dry_run:
            self._pusher.wake([uuid])
            self._context.changes.publish([uuid])


def _require_failed_save(vm: VM) -> None:
    if last_reported_status(vm) is not ObservedStatus.FAILED_TO_SAVE:
        raise Conflict(
            f"{vm.desired.name} has not failed to save: it is {last_reported_status(vm).value}.",
            "There is nothing to retry.",
        )
