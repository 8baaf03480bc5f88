"""Adopt VMs that were started past the master: ask the worker, then store the VM with its owner."""

from __future__ import annotations

from functools import partial

from master_service.core.errors import Conflict, NotFound, SaltError
from master_service.db.engine import database_method
from master_service.planning.vm import VM
from master_service.policy.audit import Actor
from master_service.reconciler.poller import sort_answers
from master_service.reconciler.pusher import Pusher
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call
from master_service.store.desired import ChangeRequest
from worker_service.contract import VMStatus


class AdoptionService:
    """Carries out adoptions. `actor` is the author in the audit."""

    def __init__(self, context: Context, pusher: Pusher) -> None:
        self._context = context
        self._pusher = pusher

    async def adopt(self, worker_id: str, uuid: str, owner: str, actor: Actor, *, dry: bool) -> VM:
        """Make an unassigned VM of a worker a VM of this owner. A dry run takes the worker's last list.

        Raises NotFound, NameTaken, QuotaExceeded, Conflict, SaltError.
        """
        return await self._store(worker_id, uuid, owner, actor, None if dry else await self._ask(worker_id, uuid))

    async def _ask(self, worker_id: str, uuid: str) -> VMStatus:
        """Return the present status of a VM. The last list may be minutes old, and the VM may be off by now."""
        context = self._context
        answers = await call(context, [worker_id], "vmachines.list", {}, context.settings.poll_timeout_s)
        if worker_id not in context.trust.keys:
            raise Conflict(f"{worker_id} is not enrolled.", f"Enroll it first: saltern workers enroll {worker_id}")
        replies, refused = sort_answers(answers, context.settings.vm_report_limit_kib << 10)
        if worker_id not in replies:
            why = refused.get(worker_id, "does not answer")
            raise SaltError(f"{worker_id} was asked for the VM and {why}.", "Nothing was changed. Try again later.")
        for status in replies[worker_id].vmachines:
            if status.uuid == uuid:
                return status
        raise NotFound(f"{worker_id} has no VM {uuid}.", "`saltern list --unmanaged` shows those that can be adopted.")

    @database_method
    async def _store(self, worker_id: str, uuid: str, owner: str, actor: Actor, found: VMStatus | None) -> VM:
        context = self._context
        request = ChangeRequest(actor=actor, verb="adopt", at=context.clock(), quota=context.settings.quota)
        async with context.store.database.unit_of_work() as unit:
            vm = await context.store.desired.adopt(worker_id, uuid, owner, found, request)
            unit.after_commit(partial(self._announce, uuid))
        return vm

    async def _announce(self, uuid: str) -> None:
        self._pusher.wake([uuid])
        self._context.changes.publish([uuid])
