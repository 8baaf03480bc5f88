"""Desired states: written by users, each change with its audit entry in one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from sqlalchemy import and_, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import Conflict, NameTaken, NotFound, QuotaExceeded
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import AccountRow, AuditRow, VMachineRow, WorkerRow
from master_service.planning.adoption import adopt
from master_service.planning.disk_ends import origin_as_cause
from master_service.planning.outcomes import Outcome
from master_service.planning.vm import VM, DesiredState, DesiredStatus, DispatchState, ObservedState, Worker
from master_service.policy import quotas
from master_service.policy.audit import MASTER, Actor, AuditEntry
from master_service.policy.permissions import Role
from master_service.policy.quotas import QuotaLimits
from master_service.store.audit import add_entry
from master_service.store.history import record_desired_change, record_observed
from master_service.store.mapping import desired_columns, load_for_change, load_vms, worker_of, write_observed
from master_service.store.operations import mark_destroyed, mark_superseded
from worker_service.contract import VMStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class ChangeRequest:
    """A request to change something: its actor, verb and time, for the audit entry."""

    actor: Actor
    verb: str
    at: datetime
    quota: QuotaLimits = field(default_factory=dict)
    """The default quota, for owners whose account has no quota of its own."""


class DesiredStore:
    """Writer of desired states."""

    def __init__(self, database: Database, term: FencingToken) -> None:
        self._database = database
        self._term = term

    @database_method
    async def create(self, desired: DesiredState, request: ChangeRequest) -> None:
        """Store a new VM. Raises NameTaken when a VM that is not destroyed has the name, QuotaExceeded, Conflict."""
        try:
            async with self._database.write() as session:
                new = new_vm(desired)
                await _require_room(session, request.quota, new)
                session.add(VMachineRow(**desired_columns(desired)))
                # A VM that is not to run is sent to no worker, so its creation is done.
                _audit(
                    session,
                    desired,
                    request,
                    Outcome.DONE if desired.status is DesiredStatus.HALTED else Outcome.QUEUED,
                )
                record_desired_change(session, None, new, request.verb, request.actor.name, request.at)
        except IntegrityError as err:
            raise NameTaken(f"There is a VM named {desired.name} already.") from err

    @database_method
    async def adopt(self, worker_id: str, uuid: str, owner: str, found: VMStatus | None, request: ChangeRequest) -> VM:
        """Store an unassigned VM of a worker as a VM of this owner. `found`: its report; None: the stored one.

        Raises NotFound, NameTaken, QuotaExceeded, and Conflict; then nothing is written.
        """
        try:
            async with self._database.write() as session:
                account = (await session.exec(select(AccountRow).where(AccountRow.name == owner))).first()
                if account is None:
                    raise NotFound(f"There is no user {owner!r}.", "`saltern users` shows the users.")
                row = await session.get(WorkerRow, worker_id)
                worker = worker_of(row) if row else Worker(id=worker_id)
                found = found or next((each for each in worker.unassigned_vms if each.uuid == uuid), None)
                if row is None or found is None:
                    raise NotFound(
                        f"{worker_id} reports no unmanaged VM {uuid}.", "`saltern list --unmanaged` shows all of them."
                    )
                _require_unknown(await session.get(VMachineRow, uuid), worker_id)
                vm = adopt(found, worker, owner, account.id, request.at)
                await _require_room(session, request.quota, vm)
                session.add(VMachineRow(**desired_columns(vm.desired)))
                await session.flush()
                await write_observed(session, {uuid: (ObservedState(), vm.observed)})
                _audit(session, vm.desired, request, Outcome.DONE)
                record_desired_change(session, None, vm, request.verb, request.actor.name, request.at)
                record_observed(session, replace(vm, observed=ObservedState()), vm, request.at)
                row.unassigned_vms = [each for each in row.unassigned_vms if each["uuid"] != uuid]
                return vm
        except IntegrityError as err:
            name = found.name if found else uuid
            raise NameTaken(
                f"There is a VM named {name} already, and a VM cannot be renamed.",
                f"Destroy one of the two, or leave this one to {worker_id}: it goes on there as it is.",
            ) from err

    @database_method
    async def change(self, uuid: str, edit: Callable[[VM], DesiredState], request: ChangeRequest) -> int:
        """Replace the desired state by `edit(vm)`, decided and written under one lock; return the operation's id.

        Raises NotFound, and the errors of `edit`; then nothing is written.
        """
        async with self._database.write() as session:
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None:
                raise NotFound(f"There is no VM {uuid}.")
            edited = edit(vm)
            if edited != vm.desired:
                await _require_room(session, request.quota, replace(vm, desired=edited), vm)
            if edited != vm.desired:
                await mark_superseded(session, uuid)
            entry = _audit(session, edited, request, Outcome.DONE if edited == vm.desired else Outcome.QUEUED)
            if edited != vm.desired:
                await _write(session, edited)
                changed = replace(vm, desired=edited)
                cause = origin_as_cause(changed) if request.verb == "start" else ""
                record_desired_change(session, vm.desired, changed, request.verb, request.actor.name, request.at, cause)
            await session.flush()
            return entry.id or 0

    @database_method
    async def record_one_shot(self, uuid: str, check: Callable[[VM], None], request: ChangeRequest) -> tuple[VM, int]:
        """Record an action that is sent once and changes no desired state; return the VM and the operation's id.

        Raises NotFound, and the errors of `check`; then nothing is written.
        """
        async with self._database.write() as session:
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None:
                raise NotFound(f"There is no VM {uuid}.")
            check(vm)
            desired = replace(vm.desired, generation=vm.accepted_generation)
            entry = _audit(session, desired, request, Outcome.QUEUED)
            await session.flush()
            return vm, entry.id or 0

    @database_method
    async def follow(self, known: DesiredState, now: datetime, cause: str = "") -> bool:
        """Let the desired state become halted, unless its user changed it since `known`. Sends nothing.

        `cause`: for the history.
        """
        return await self._halt(known, "follow", now, cause)

    @database_method
    async def give_up(self, known: DesiredState, now: datetime, cause: str = "") -> bool:
        """Let the desired state become halted as `follow` does, because a worker refused the start for good."""
        return await self._halt(known, "give_up", now, cause)

    async def _halt(self, known: DesiredState, verb: str, now: datetime, cause: str) -> bool:
        # No command asked for this state, so none has to be delivered for it.
        halted = replace(known, status=DesiredStatus.HALTED, changed_at=now, status_generation=0)
        async with self._database.write() as session:
            columns = {"status": halted.status.value, "changed_at": now, "status_generation": 0}
            if not await self._settle(session, known, **columns):
                return False
            _record(session, known, halted, verb, now, cause)
            return True

    @database_method
    async def destroyed(self, known: DesiredState, now: datetime, cause: str = "") -> bool:
        """Mark a VM as destroyed, unless its user changed it since `known`: its name is free again.

        `cause`: for the history.
        """
        async with self._database.write() as session:
            if not await self._settle(session, known, destroyed_at=now):
                return False
            await mark_destroyed(session, known.uuid)
            _record(session, known, replace(known, destroyed_at=now), "destroyed", now, cause)
            return True

    async def _settle(self, session: AsyncSession, known: DesiredState, **columns: object) -> bool:
        """Write what the master changes by itself; return False if a user changed the VM since `known`."""
        await self._term.check(session)
        result = await session.exec(
            update(VMachineRow)
            .where(
                col(VMachineRow.uuid) == known.uuid,
                col(VMachineRow.version) == known.version,
                col(VMachineRow.destroyed_at).is_(None),
            )
            .values(version=known.version + 1, **columns)
        )
        return bool(result.rowcount)


def _require_unknown(row: VMachineRow | None, worker_id: str) -> None:
    """Raise Conflict when a VM with this uuid is, or was, a VM of the master: the worker may then have a copy of it."""
    if row is None:
        return
    if row.worker == worker_id and row.destroyed_at is None:
        raise Conflict(f"{row.name} is a VM of this master already.", "There is nothing to adopt.")
    known = "is a VM of this master on another worker" if row.destroyed_at is None else "was destroyed by this master"
    raise Conflict(
        f"{row.name} {known}, and {worker_id} has a copy of it.",
        f"If nothing in the copy is needed, discard it: salt {worker_id} vmachines.destroy uuid={row.uuid}",
    )


def new_vm(desired: DesiredState) -> VM:
    """Return a VM of which no worker knows anything yet."""
    return VM(desired=desired, observed=ObservedState(), dispatch=DispatchState())


def _record(  # noqa: PLR0913, PLR0917 - what an entry says
    session: AsyncSession, before: DesiredState, after: DesiredState, verb: str, now: datetime, cause: str
) -> None:
    """Add the audit entry and the event of a change that the master makes by itself."""
    _audit(session, before, ChangeRequest(actor=MASTER, verb=verb, at=now), Outcome.DONE)
    record_desired_change(session, before, new_vm(after), verb, MASTER.name, now, cause)


async def _write(session: AsyncSession, desired: DesiredState) -> None:
    columns = desired_columns(replace(desired, version=desired.version + 1))
    await session.exec(update(VMachineRow).where(col(VMachineRow.uuid) == desired.uuid).values(**columns))


def _audit(session: AsyncSession, desired: DesiredState, request: ChangeRequest, outcome: Outcome) -> AuditRow:
    notify_on_commit(session, [desired.uuid])
    return audit(session, request, name=desired.name, uuid=desired.uuid, generation=desired.generation, outcome=outcome)


def audit(  # noqa: PLR0913 - one parameter per column
    session: AsyncSession,
    request: ChangeRequest,
    *,
    name: str,
    uuid: str = "",
    generation: int = 0,
    outcome: Outcome = Outcome.DONE,
) -> AuditRow:
    """Add the audit entry of a request about a VM, or, without a uuid, about the worker of that name."""
    return add_entry(
        session,
        AuditEntry(
            at=request.at,
            actor=request.actor,
            verb=request.verb,
            kind="vm" if uuid else "worker",
            target=name,
            uuid=uuid,
            generation=generation,
            outcome=outcome,
        ),
    )


def limits_of(account: AccountRow, default: QuotaLimits) -> QuotaLimits:
    """Return an account's quota: its own limits, and for the role user also the default ones."""
    return {**(default if account.role == Role.USER else {}), **account.quota}


async def vms_of(session: AsyncSession, owner_id: str, *, but: str = "") -> list[VM]:
    """Return an account's VMs that count towards the quota, `but` one."""
    mine = (
        col(VMachineRow.owner_id) == owner_id,
        col(VMachineRow.uuid) != but,
        col(VMachineRow.destroyed_at).is_(None),
    )
    return await load_vms(session, and_(*mine), with_workers=False)


async def _require_room(session: AsyncSession, default: QuotaLimits, new: VM, old: VM | None = None) -> None:
    """Raise QuotaExceeded when a VM exceeds its owner's quota. `old`: the same VM as it counts until now.

    Raises Conflict when the owner's account was deleted: a VM without one would belong to nobody.
    """
    owner, owner_id = new.desired.owner, new.desired.owner_id
    before = quotas.usage_of(old) if old else quotas.ResourceUsage()
    more = quotas.usage_of(new) - before
    if old is not None and not quotas.grows(more):
        return
    # The account stays locked until the transaction ends: of two creates at once, the second counts the first.
    query = select(AccountRow).where(AccountRow.id == owner_id).with_for_update()
    account = (await session.exec(query)).first()
    if account is None:
        raise Conflict(f"The account of {owner} was deleted meanwhile.", "Nothing was changed.")
    limits = limits_of(account, default)
    if all(most is None for most in limits.values()):
        return
    used = quotas.total(await vms_of(session, owner_id, but=new.uuid)) + before
    if reason := quotas.quota_violation(used, more, limits):
        raise QuotaExceeded(f"{owner} would exceed the quota: {reason}.")
