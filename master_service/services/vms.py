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
from master_service.planning.observed import Seen, last_seen
from master_service.planning.outcomes import ONCE, Outcome
from master_service.planning.placement import too_large_for_all
from master_service.planning.user_actions import asked_for, modified, outcome_of, silent, taken_away
from master_service.planning.vm import VM, Assumed, Wanted
from master_service.policy.audit import By
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Parts
from master_service.store.desired import Asked
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


class Service:
    """What users may do. `by` says who they are, for the audit."""

    def __init__(self, parts: Parts, pusher: Pusher, poller: Poller) -> None:
        self._parts = parts
        self._pusher = pusher
        self._poller = poller

    async def create(self, spec: Spec, by: By, pin: str | None = None, labels: Mapping[str, str] | None = None) -> VM:
        """Keep a new VM, to be started unless its run policy is manual. Raises NameTaken, TooLarge."""
        if why := too_large_for_all(spec, await self._parts.store.reading.workers()):
            raise TooLarge(f"No worker can ever hold {spec.name}: {why}.")
        now = self._parts.clock()
        assumed = Assumed(
            uuid=str(uuidlib.uuid4()),
            name=spec.name,
            owner=by.who,
            spec=spec,
            wanted=Wanted.HALTED if spec.run_policy == "manual" else Wanted.RUNNING,
            generation=1,
            asked=1,
            version=1,
            created_at=now,
            changed_at=now,
            pin=pin,
            labels=dict(labels or {}),
        )
        await self._parts.store.wishes.create(assumed, self._asked(by, "create"))
        self._tell(assumed.uuid)
        return await self.get(assumed.uuid)

    async def get(self, id_or_name: str) -> VM:
        """One VM by uuid or name. Raises NotFound."""
        vm = await self._parts.store.reading.vm(id_or_name)
        if vm is None:
            raise NotFound(f"There is no VM {id_or_name!r}.")
        return vm

    async def act(self, id_or_name: str, verb: str, by: By, if_version: int | None = None) -> Operation:
        """Ask for start, suspend, resume, shutdown or destroy. Raises NotFound, Conflict, ChangedMeanwhile."""
        uuid = (await self.get(id_or_name)).uuid
        number = await self._parts.store.wishes.change(
            uuid, lambda vm: asked_for(vm, verb, self._parts.clock(), if_version), self._asked(by, verb)
        )
        self._tell(uuid)
        return Operation(id=number, vm=await self.get(uuid))

    async def modify(
        self,
        id_or_name: str,
        settings: Mapping[str, str],
        by: By,
        if_version: int | None = None,
        labels: Mapping[str, str] | None = None,
    ) -> VM:
        """Change where disks are saved, the CD, or the labels. Raises NotFound, Conflict, ChangedMeanwhile."""
        uuid = (await self.get(id_or_name)).uuid
        await self._parts.store.wishes.change(
            uuid, lambda vm: modified(vm, settings, self._parts.clock(), if_version, labels), self._asked(by, "modify")
        )
        self._tell(uuid)
        return await self.get(uuid)

    async def save_retry(self, id_or_name: str, by: By) -> Operation:
        """Let a worker try again to save disks that it could not save. Raises NotFound, Conflict, SaltError.

        Not a wish that is kept, as disks that cannot be saved are not to be tried for ever: one job, told to its worker
        now. Lost on its way it changes nothing, and is asked for again.
        """
        uuid = (await self.get(id_or_name)).uuid
        vm, line = await self._parts.store.wishes.ask_once(uuid, _failed_to_save, self._asked(by, ONCE))
        if self._parts.store.database.rehearses:
            return Operation(id=line, vm=vm)
        action = Action(verb="save_retry", uuid=uuid, generation=vm.real.generation)
        try:
            jid = await self._parts.salt.publish(
                [str(vm.assumed.worker)], "vmachines.apply", {"actions": [msgspec.to_builtins(action)]}
            )
        except SaltError as err:
            await self._parts.store.audit.refused(line, str(err))
            raise
        await self._parts.store.audit.handed(line, jid)
        return Operation(id=line, vm=vm)

    async def drain(self, worker_id: str, by: By) -> None:
        """Let a worker get no new VM; those on it stay. Raises NotFound."""
        await self._parts.store.hosts.drain(worker_id, self._asked(by, "drain"))

    async def undrain(self, worker_id: str, by: By) -> None:
        """Let a worker that was drained or fenced get VMs again. Raises NotFound."""
        await self._parts.store.hosts.undrain(worker_id, self._asked(by, "undrain"))
        if not self._parts.store.database.rehearses:
            await self._poll()  # VMs that wait for a worker are looked at after it

    async def fence(self, worker_id: str, i_have_fenced: str, by: By) -> list[str]:
        """Take its VMs from a worker that is off for certain, and start them elsewhere; their uuids.

        `i_have_fenced` is the worker's id once more: only a person can know it to be off. They start anew from their
        images; the disks that they had stay where they are. Raises NotFound, Conflict when it answers, BadRequest.
        """
        if i_have_fenced != worker_id:
            raise BadRequest([("i_have_fenced", f"say {worker_id} once more: that it is switched off for certain")])
        now = self._parts.clock()
        moved = await self._parts.store.hosts.fence(
            worker_id, silent, lambda vm: taken_away(vm, now), self._asked(by, "fence")
        )
        if not self._parts.store.database.rehearses:
            log.warning("worker_fenced", worker=worker_id, who=by.who, vms=moved)
        for uuid in moved:
            self._tell(uuid)
        return moved

    async def wait(self, uuid: str, verb: str, timeout_s: float) -> tuple[VM, Outcome | None]:
        """Wait until it is known what a verb came to; the VM as it is then, and that. None: not within `timeout_s`.

        Raises Conflict when what was told to its worker once, and is not told again, came to nothing.
        """
        with self._parts.changes.subscribe() as subscription, suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (outcome := outcome_of(vm := await self.get(uuid), verb)) is None:
                    await self._demand_hope(vm, verb)
                    if not await subscription.wait(_POLL_AFTER_S):
                        await self._poll()
                # As it was decided on: what is told again meanwhile may hide a refusal.
                return vm, outcome
        vm = await self.get(uuid)
        return vm, outcome_of(vm, verb)

    async def _poll(self) -> None:
        """Have all workers asked soon, by whichever master it is that works."""
        self._poller.request()
        await self._parts.store.database.ask_for_poll()

    async def _demand_hope(self, vm: VM, verb: str) -> None:
        line = await self._parts.store.audit.newest(vm.uuid, verb) if verb == ONCE else None
        if line is not None and line.outcome in (Outcome.REFUSED, Outcome.FAILED):
            raise Conflict(
                f"{verb} of {vm.assumed.name} on {vm.assumed.worker}: {line.outcome}. {line.detail}",
                "Mend what its worker says, and ask again.",
            )

    def _asked(self, by: By, verb: str) -> Asked:
        return Asked(by=by, verb=verb, at=self._parts.clock(), quota=self._parts.settings.quota)

    def _tell(self, uuid: str) -> None:
        if not self._parts.store.database.rehearses:
            self._pusher.wake([uuid])
            self._parts.changes.publish([uuid])


def _failed_to_save(vm: VM) -> None:
    if last_seen(vm) is not Seen.FAILED_TO_SAVE:
        raise Conflict(
            f"{vm.assumed.name} has not failed to save: it is {last_seen(vm).value}.", "There is nothing to retry."
        )
