"""Operations on VMs and workers: commit the desired state, and wait for the effect where the contract blocks.

A method changes the database in a unit of work and gives its effects to that unit: waking the pusher, publishing to the
change feed, sending a Salt job, writing to the log. A dry run rolls the unit back, so it has no effects.
"""

from __future__ import annotations

import asyncio
import uuid as uuidlib
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec
import structlog

from master_service.core.audience import two_forms
from master_service.core.errors import BadRequest, Conflict, NameTaken, NotFound, SaltError, TooLarge
from master_service.db.engine import database_method
from master_service.planning.observed import ObservedStatus, last_reported_status
from master_service.planning.outcomes import ONE_SHOT_VERB, Outcome
from master_service.planning.placement import too_large_for_all
from master_service.planning.user_actions import (
    apply_action,
    apply_modify,
    can_confirm_soon,
    evacuate,
    outcome_of,
    pending_settings,
    require_unreachable,
)
from master_service.planning.vm import VM, DesiredState, DesiredStatus
from master_service.policy.audit import Actor
from master_service.policy.worker_address import check_api_url
from master_service.reconciler.poller import Poller
from master_service.reconciler.pusher import Pusher
from master_service.runtime.admission import Admission
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call
from master_service.saltapi.untrusted import sanitize_text
from master_service.store.desired import ChangeRequest
from worker_service.contract import SaveRetryAction, Spec
from worker_service.contract.signatures import key_bytes

log = structlog.get_logger()
LONGEST_BLOCK_S: Final = 3600
"""The longest `timeout_s` of a blocking verb."""
_POLL_AFTER_S: Final = 5.0
"""A blocking call asks for a poll after this time without an event: the event may have been lost."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Accepted:
    """An accepted verb and its VM right afterwards. `id` is the id of its operation and of its audit entry."""

    id: int
    vm: VM


class VmService:
    """Carries out requests of users. `actor` is the author in the audit."""

    def __init__(self, context: Context, pusher: Pusher, poller: Poller) -> None:
        self._context = context
        self._pusher = pusher
        self._poller = poller
        self._admission = Admission(context)

    async def create(
        self,
        spec: Spec,
        actor: Actor,
        pin: str | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        protected: bool = False,
    ) -> VM:
        """Store a new VM. It is started unless its run policy is manual.

        Raises NameTaken, TooLarge, QuotaExceeded, and the errors of `Admission.admit_new`.
        """
        if await self._context.store.queries.vm(spec.name) is not None:
            raise NameTaken(f"There is a VM named {spec.name} already.")
        if why := too_large_for_all(spec, await self._context.store.queries.workers()):
            public = f"No worker has room for {spec.name}, not even an empty one."
            raise TooLarge(two_forms(f"No worker can ever hold {spec.name}: {why}.", public))
        now = self._context.clock()
        desired = DesiredState(
            uuid=str(uuidlib.uuid4()),
            name=spec.name,
            owner=actor.name,
            owner_id=actor.account_id,
            spec=spec,
            status=DesiredStatus.HALTED if spec.run_policy == "manual" else DesiredStatus.RUNNING,
            generation=1,
            user_generation=1,
            status_generation=1,
            version=1,
            created_at=now,
            changed_at=now,
            pin=pin,
            labels=dict(labels or {}),
            protected=protected,
        )
        await self._store_new(await self._admission.admit_new(desired), actor)
        return await self.get(desired.uuid)

    @database_method
    async def _store_new(self, desired: DesiredState, actor: Actor) -> None:
        async with self._context.store.database.unit_of_work() as unit:
            await self._context.store.desired.create(desired, self._request(actor, "create"))
            unit.after_commit(partial(self._announce, [desired.uuid]))

    async def get(self, id_or_name: str) -> VM:
        """Return one VM by uuid or name. Raises NotFound."""
        vm = await self._context.store.queries.vm(id_or_name)
        if vm is None:
            raise NotFound(f"There is no VM {id_or_name!r}.")
        return vm

    async def act(
        self, id_or_name: str, verb: str, actor: Actor, if_version: int | None = None, *, from_image: bool = False
    ) -> Accepted:
        """Request start, suspend, resume, shutdown or destroy. Raises NotFound, Conflict, ChangedMeanwhile, Refused.

        `from_image`: the start is no continuation of the last save.
        """
        vm = await self.get(id_or_name)
        uuid = vm.uuid

        def edit(vm: VM) -> DesiredState:
            return apply_action(vm, verb, self._context.clock(), if_version, from_image=from_image)

        if verb == "start" and (edited := edit(vm)) != vm.desired:
            await self._admission.admit_start(replace(vm, desired=edited))
        number = await self._change(uuid, verb, actor, edit)
        return Accepted(id=number, vm=await self.get(uuid))

    async def modify(  # noqa: PLR0913 - what can be changed
        self,
        id_or_name: str,
        settings: Mapping[str, str],
        actor: Actor,
        if_version: int | None = None,
        labels: Mapping[str, str] | None = None,
        *,
        protected: bool | None = None,
    ) -> Accepted:
        """Change where disks are saved, CD, labels, protection.

        Raises NotFound, Conflict, ChangedMeanwhile, Refused.
        """
        vm = await self.get(id_or_name)
        uuid = vm.uuid

        def edit(vm: VM) -> DesiredState:
            return apply_modify(vm, settings, self._context.clock(), if_version, labels, protected=protected)

        await self._admission.admit_changes(vm, replace(vm, desired=edit(vm)))
        number = await self._change(uuid, "modify", actor, edit)
        return Accepted(id=number, vm=await self.get(uuid))

    async def confirm(self, modified: Accepted, timeout_s: float) -> VM:
        """Wait until the worker has answered a change, or `timeout_s` is over; return the VM then.

        `pending_settings` tells whether it has. Raises Conflict if the worker refused it: the former values hold again.
        """
        with self._context.changes.subscribe() as subscription, suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while can_confirm_soon(await self.get(modified.vm.uuid)):
                    if not await subscription.wait(_POLL_AFTER_S):
                        await self._poll()
        vm = await self.get(modified.vm.uuid)
        operation = await self._context.store.operations.one(modified.id)
        if operation is not None and operation.outcome == Outcome.REFUSED and not pending_settings(vm):
            why = operation.detail.rstrip(".")
            raise Conflict(
                f"{vm.desired.worker} refuses this change: {why}. {vm.desired.name} keeps its former settings.",
                "Change something else, or ask the administrator of that worker.",
            )
        return vm

    @database_method
    async def save_retry(self, id_or_name: str, actor: Actor) -> Accepted:
        """Tell a worker to save disks again that it could not save. Raises NotFound, Conflict, SaltError.

        The request is no part of the desired state, because failing saves must not be retried for ever. It is one job,
        sent now. If the job is lost, the user can repeat the request.
        """
        uuid = (await self.get(id_or_name)).uuid
        async with self._context.store.database.unit_of_work() as unit:
            vm, entry = await self._context.store.desired.record_one_shot(
                uuid, _require_failed_save, self._request(actor, ONE_SHOT_VERB)
            )
            unit.after_commit(partial(self._send_save_retry, vm, entry))
        return Accepted(id=entry, vm=vm)

    @database_method
    async def enroll(self, worker_id: str, key: str, api_url: str | None, actor: Actor) -> None:
        """Believe from now on what is signed with this key in the name of this worker. Raises BadRequest."""
        for field, check, value in (("fingerprint", key_bytes, key), ("api_url", check_api_url, api_url)):
            try:
                if value or field == "fingerprint":
                    check(value or "")
            except ValueError as err:
                raise BadRequest([(field, str(err))]) from err
        async with self._context.store.database.unit_of_work() as unit:
            await self._context.store.workers.enroll(worker_id, key, api_url, self._request(actor, "enroll"))
            unit.after_commit(self._poll)

    @database_method
    async def unenroll(self, worker_id: str, actor: Actor) -> None:
        """Believe nothing in the name of this worker any more; its VMs keep their last status. Raises NotFound."""
        async with self._context.store.database.unit_of_work() as unit:
            await self._context.store.workers.unenroll(worker_id, self._request(actor, "unenroll"))
            unit.after_commit(self._poll)

    async def drain(self, worker_id: str, actor: Actor) -> None:
        """Place no new VMs on a worker; its VMs stay. Raises NotFound."""
        await self._context.store.workers.drain(worker_id, self._request(actor, "drain"))

    @database_method
    async def undrain(self, worker_id: str, actor: Actor) -> None:
        """Place VMs again on a worker that was drained or fenced. Raises NotFound."""
        async with self._context.store.database.unit_of_work() as unit:
            await self._context.store.workers.undrain(worker_id, self._request(actor, "undrain"))
            unit.after_commit(self._poll)  # the planner looks at waiting VMs after each poll

    @database_method
    async def fence(self, worker_id: str, i_have_fenced: str, actor: Actor) -> list[str]:
        """Move the VMs away from a worker that is certainly off, and return their uuids.

        `i_have_fenced` repeats the worker's id: only a human can know that the worker is off. The VMs start again from
        their last saves or their images, and their former disks stay on the worker. Raises NotFound, BadRequest, and
        Conflict when the worker answers.
        """
        if i_have_fenced != worker_id:
            raise BadRequest([("i_have_fenced", f"repeat {worker_id} to confirm that it is certainly switched off")])
        now = self._context.clock()
        async with self._context.store.database.unit_of_work() as unit:
            moved = await self._context.store.workers.fence(
                worker_id, require_unreachable, lambda vm: evacuate(vm, now), self._request(actor, "fence")
            )
            unit.after_commit(partial(self._announce_fence, worker_id, actor, moved))
        return moved

    async def wait(self, uuid: str, verb: str, timeout_s: float) -> tuple[VM, Outcome | None]:
        """Wait until the outcome of a verb is known; return the VM then, and the outcome.

        The outcome is None when `timeout_s` is over first. Raises Conflict when a verb that is sent only once failed.
        """
        with self._context.changes.subscribe() as subscription, suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while (outcome := outcome_of(vm := await self.get(uuid), verb)) is None:
                    await self._raise_if_refused(vm, verb)
                    if not await subscription.wait(_POLL_AFTER_S):
                        await self._poll()
                # Return the VM that gave the outcome: a command sent again since then may hide a refusal.
                return vm, outcome
        vm = await self.get(uuid)
        return vm, outcome_of(vm, verb)

    async def _poll(self) -> None:
        """Request an early poll from the leading master."""
        self._poller.request()
        await self._context.store.database.ask_for_poll()

    async def _raise_if_refused(self, vm: VM, verb: str) -> None:
        entry = await self._context.store.operations.newest(vm.uuid, verb) if verb == ONE_SHOT_VERB else None
        if entry is not None and entry.outcome in (Outcome.REFUSED, Outcome.FAILED):
            raise Conflict(
                f"{verb} of {vm.desired.name} on {vm.desired.worker}: {entry.outcome}. {entry.detail}",
                "Fix the problem that its worker reports, then retry.",
            )

    @database_method
    async def _change(self, uuid: str, verb: str, actor: Actor, edit: Callable[[VM], DesiredState]) -> int:
        """Change the desired state, and return the id of the audit entry."""
        async with self._context.store.database.unit_of_work() as unit:
            number = await self._context.store.desired.change(uuid, edit, self._request(actor, verb))
            unit.after_commit(partial(self._announce, [uuid]))
        return number

    def _request(self, actor: Actor, verb: str) -> ChangeRequest:
        return ChangeRequest(actor=actor, verb=verb, at=self._context.clock(), quota=self._context.settings.quota)

    async def _announce(self, uuids: Iterable[str]) -> None:
        for uuid in uuids:
            self._pusher.wake([uuid])
            self._context.changes.publish([uuid])

    async def _announce_fence(self, worker_id: str, actor: Actor, moved: list[str]) -> None:
        log.warning("worker_fenced", worker=worker_id, actor=actor.name, vms=moved)
        await self._announce(moved)

    async def _send_save_retry(self, vm: VM, entry: int) -> None:
        worker = str(vm.desired.worker)
        action = SaveRetryAction(uuid=vm.uuid, generation=vm.accepted_generation)
        kwarg = {"actions": [msgspec.to_builtins(action)]}
        try:
            answers = await call(
                self._context, [worker], "vmachines.apply", kwarg, self._context.settings.poll_timeout_s
            )
        except SaltError as err:
            await self._context.store.operations.one_shot_refused(entry, str(err))
            raise
        match answers.get(worker):
            case None:
                await self._context.store.operations.one_shot_sent(entry)
            case {"results": [{"success": True}]}:
                await self._context.store.operations.one_shot_answered(entry, None)
            case {"results": [{"message": str() as message}]} | {"message": str() as message}:
                await self._context.store.operations.one_shot_answered(entry, sanitize_text(message))


def _require_failed_save(vm: VM) -> None:
    if last_reported_status(vm) is not ObservedStatus.FAILED_TO_SAVE:
        raise Conflict(
            f"{vm.desired.name} has not failed to save: it is {last_reported_status(vm).value}.",
            "There is nothing to retry.",
        )
