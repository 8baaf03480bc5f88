"""Rows to values and back: the one module that knows both."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, TypeVar, get_args

import msgspec
from sqlalchemy import Table as SqlTable
from sqlalchemy import delete, insert, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import NotFound
from master_service.db.tables import (
    AccountRow,
    AuditRow,
    DispatchRow,
    ObservedRow,
    OperationRow,
    Table,
    VMachineRow,
    WorkerRow,
)
from master_service.planning.saves import SavedDisk
from master_service.planning.vm import (
    VM,
    DesiredState,
    DesiredStatus,
    DispatchState,
    ObservedState,
    Verb,
    VMProblem,
    Worker,
)
from master_service.policy.audit import Actor, AuditRecord
from worker_service.contract import Capacity, Foreign, Spec, VMStatus

Joined = tuple[VMachineRow, ObservedRow | None, DispatchRow | None, WorkerRow | None]
_VERBS = frozenset(get_args(Verb))
_METADATA = Table.metadata.tables
_VMACHINE, _OBSERVED, _DISPATCH, _WORKER = (_METADATA[name] for name in ("vmachine", "observed", "dispatch", "worker"))


def _tuple_type(table: SqlTable) -> Any:
    return namedtuple(table.name, [column.name for column in table.c])  # noqa: PYI024 - made from the table


class _Part:
    """The columns of one table within a row of several, as a tuple with the names that its ORM class has."""

    def __init__(self, table: SqlTable, start: int) -> None:
        self.end: Final = start + len(table.c)
        self._slice: Final = slice(start, self.end)
        self._make: Final = _tuple_type(table)._make

    def of(self, row: Sequence[Any]) -> Any:
        """Return this table's part of a row."""
        return self._make(row[self._slice])


_DESIRED_PART: Final = _Part(_VMACHINE, 0)
_OBSERVED_PART: Final = _Part(_OBSERVED, _DESIRED_PART.end)
_DISPATCH_PART: Final = _Part(_DISPATCH, _OBSERVED_PART.end)
_SELECT_MANY: Final = select_columns(*_VMACHINE.c, *_OBSERVED.c, *_DISPATCH.c).select_from(
    _VMACHINE.outerjoin(_OBSERVED, _OBSERVED.c.uuid == _VMACHINE.c.uuid).outerjoin(
        _DISPATCH, _DISPATCH.c.uuid == _VMACHINE.c.uuid
    )
)
_Row = TypeVar("_Row", ObservedRow, DispatchRow)


def vm_select() -> Any:
    """Return the query for whole VMs; `vm_of` takes its rows."""
    return (
        select(VMachineRow, ObservedRow, DispatchRow, WorkerRow)
        .outerjoin(ObservedRow, col(ObservedRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(DispatchRow, col(DispatchRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(WorkerRow, col(WorkerRow.id) == col(VMachineRow.worker))
    )


async def load_vms(session: AsyncSession, condition: Any, *, with_workers: bool = True) -> list[VM]:
    """Return whole VMs, for thousands of them: plain rows instead of ORM objects take a fifth of the time."""
    connection = await session.connection()
    worker_rows: Any = await connection.execute(select_columns(_WORKER)) if with_workers else ()
    workers = {row.id: worker_of(row) for row in worker_rows}
    found: list[VM] = []
    for row in await connection.execute(_SELECT_MANY.where(condition)):
        desired, observed, dispatch = _DESIRED_PART.of(row), _OBSERVED_PART.of(row), _DISPATCH_PART.of(row)
        vm = VM(
            desired=desired_of(desired),
            observed=observed_of(observed) if observed.uuid is not None else ObservedState(),
            dispatch=dispatch_of(dispatch) if dispatch.uuid is not None else DispatchState(),
            worker=workers.get(desired.worker),
        )
        found.append(vm)
    return found


async def write_observed(session: AsyncSession, changes: Mapping[str, tuple[ObservedState, ObservedState]]) -> None:
    """Write the observed states of many VMs with few statements. `changes`: state before and after, by uuid."""
    connection = await session.connection()
    # Most reports say nothing new but their time.
    same = [uuid for uuid, (before, after) in changes.items() if replace(before, real_at=after.real_at) == after]
    for at in {changes[uuid][1].real_at for uuid in same}:
        for part in _batches([uuid for uuid in same if changes[uuid][1].real_at == at]):
            await connection.execute(update(_OBSERVED).where(_OBSERVED.c.uuid.in_(part)).values(real_at=at))
    unchanged = set(same)
    for part in _batches([uuid for uuid in changes if uuid not in unchanged]):
        rows = [{"uuid": uuid, **observed_columns(changes[uuid][1])} for uuid in part]
        await connection.execute(delete(_OBSERVED).where(_OBSERVED.c.uuid.in_(part)))
        await connection.execute(insert(_OBSERVED), rows)


def _batches(uuids: list[str], size: int = 500) -> list[list[str]]:
    return [uuids[start : start + size] for start in range(0, len(uuids), size)]


async def load_for_change(session: AsyncSession, uuids: Collection[str]) -> dict[str, VM]:
    """Return VMs by uuid and lock them: no other transaction changes them until this one ends."""
    await lock(session, col(VMachineRow.uuid).in_(uuids))
    return {row[0].uuid: vm_of(row) for row in await session.exec(vm_select().where(col(VMachineRow.uuid).in_(uuids)))}


async def lock(session: AsyncSession, condition: Any) -> None:
    """Lock these VMs until the transaction ends. On SQLite only one transaction writes at a time anyway.

    Every transaction locks VMs first, in the order of their uuids, so that two transactions never wait for each other.
    The lock is a statement of its own: after PostgreSQL has waited for a lock, it reads the locked row again, but not
    the rows joined to it.
    """
    if session.get_bind().dialect.name != "sqlite":
        await session.exec(select(VMachineRow.uuid).where(condition).order_by(VMachineRow.uuid).with_for_update())


async def lock_account(session: AsyncSession, name: str, actor: Actor) -> AccountRow:
    """Return an account and lock it. Raises NotFound, also if the actor's own name is another account's by now."""
    row = await session.get(AccountRow, name, with_for_update=True)
    if row is None or (name == actor.name and row.id != actor.account_id):
        raise NotFound(f"There is no user {name!r}.")
    return row


def vm_of(row: Joined) -> VM:
    """Return a row of `vm_select` as a value."""
    desired, observed, dispatch, worker = row
    return VM(
        desired=desired_of(desired),
        observed=observed_of(observed) if observed else ObservedState(),
        dispatch=dispatch_of(dispatch) if dispatch else DispatchState(),
        worker=worker_of(worker) if worker else None,
    )


def desired_of(row: VMachineRow) -> DesiredState:
    """Return a desired state as a value."""
    return DesiredState(
        uuid=row.uuid,
        name=row.name,
        owner=row.owner,
        owner_id=row.owner_id,
        spec=msgspec.convert(row.spec, Spec),
        status=DesiredStatus(row.status),
        generation=row.generation,
        user_generation=row.user_generation,
        version=row.version,
        created_at=row.created_at,
        changed_at=row.changed_at,
        pin=row.pin,
        worker=row.worker,
        destroyed_at=row.destroyed_at,
        labels=row.labels,
        protected=row.protected,
        status_generation=row.status_generation,
        from_image=row.from_image,
    )


def desired_columns(desired: DesiredState) -> dict[str, Any]:
    """Return the columns of `vmachine` for a value."""
    return {
        "uuid": desired.uuid,
        "name": desired.name,
        "owner": desired.owner,
        "owner_id": desired.owner_id,
        "spec": msgspec.to_builtins(desired.spec),
        "status": desired.status.value,
        "generation": desired.generation,
        "user_generation": desired.user_generation,
        "version": desired.version,
        "created_at": desired.created_at,
        "changed_at": desired.changed_at,
        "pin": desired.pin,
        "worker": desired.worker,
        "destroyed_at": desired.destroyed_at,
        "labels": dict(desired.labels),
        "protected": desired.protected,
        "status_generation": desired.status_generation,
        "from_image": desired.from_image,
    }


def observed_of(row: ObservedRow) -> ObservedState:
    """Return an observed state as a value."""
    return ObservedState(
        status=msgspec.convert(row.status, VMStatus) if row.status is not None else None,
        real_at=row.real_at,
        since=row.since,
        last_progress_at=row.last_progress_at,
        missed_polls=row.missed_polls,
        tombstone=row.tombstone,
        elsewhere=row.elsewhere,
        saves={disk: SavedDisk(**save) for disk, save in row.saves.items()},
    )


def observed_columns(observed: ObservedState) -> dict[str, Any]:
    """Return the columns of `observed` for a value."""
    return {
        "status": msgspec.to_builtins(observed.status) if observed.status is not None else None,
        "real_at": observed.real_at,
        "since": observed.since,
        "last_progress_at": observed.last_progress_at,
        "missed_polls": observed.missed_polls,
        "tombstone": observed.tombstone,
        "elsewhere": observed.elsewhere,
        "saves": {disk: save._asdict() for disk, save in observed.saves.items()},
    }


def dispatch_of(row: DispatchRow) -> DispatchState:
    """Return the pusher's bookkeeping as a value."""
    problem = VMProblem(code=row.problem_code, message=row.problem_message or "") if row.problem_code else None
    verb: Verb | None = row.verb if row.verb in _VERBS else None  # type: ignore[assignment]
    return DispatchState(
        user_generation=row.user_generation,
        generation=row.generation,
        verb=verb,
        jid=row.jid,
        sent_at=row.sent_at,
        attempts=row.attempts,
        next_at=row.next_at,
        accepted=row.accepted,
        problem=problem,
        restarts=tuple(datetime.fromisoformat(at) for at in row.restarts),
        reboots=tuple(datetime.fromisoformat(at) for at in row.reboots),
        corrected_generation=row.corrected_generation,
        rejected_by=tuple(row.rejected_by),
    )


def dispatch_columns(dispatch: DispatchState) -> dict[str, Any]:
    """Return the columns of `dispatch` for a value."""
    return {
        "user_generation": dispatch.user_generation,
        "generation": dispatch.generation,
        "verb": dispatch.verb,
        "jid": dispatch.jid,
        "sent_at": dispatch.sent_at,
        "attempts": dispatch.attempts,
        "next_at": dispatch.next_at,
        "accepted": dispatch.accepted,
        "problem_code": dispatch.problem.code if dispatch.problem else None,
        "problem_message": dispatch.problem.message if dispatch.problem else None,
        "restarts": [at.isoformat() for at in dispatch.restarts],
        "reboots": [at.isoformat() for at in dispatch.reboots],
        "corrected_generation": dispatch.corrected_generation,
        "rejected_by": list(dispatch.rejected_by),
    }


def worker_of(row: WorkerRow) -> Worker:
    """Return a worker as a value."""
    return Worker(
        id=row.id,
        capacity=msgspec.convert(row.capacity, Capacity) if row.capacity is not None else None,
        version=row.version,
        seen_at=row.seen_at,
        unreachable_since=row.unreachable_since,
        draining=row.draining,
        fenced_at=row.fenced_at,
        foreign=tuple(msgspec.convert(f, Foreign) for f in row.foreign),
        unassigned_vms=tuple(map(_unassigned, row.unassigned_vms)),
        problem=row.problem,
        key=row.key,
        claimed_key=row.claimed_key,
        api_url=row.api_url,
    )


def _unassigned(stored: Mapping[str, Any]) -> VMStatus:
    """Return a stored report. Version 0.2 stored only the uuid, the name and the status, as `state`."""
    least = {"status": stored.get("state"), "message": "", "generation": 0, "since": ""}
    return msgspec.convert({**least, **stored}, VMStatus)


def reported_columns(worker: Worker) -> dict[str, Any]:
    """Return the columns of `worker` that its reports write. Users write the others."""
    return {
        "capacity": msgspec.to_builtins(worker.capacity) if worker.capacity is not None else None,
        "version": worker.version,
        "seen_at": worker.seen_at,
        "unreachable_since": worker.unreachable_since,
        "foreign": [msgspec.to_builtins(each) for each in worker.foreign],
        # With `state`, as version 0.2 has it, which may still run on the same database.
        "unassigned_vms": [{**msgspec.to_builtins(vm), "state": vm.status.value} for vm in worker.unassigned_vms],
        "problem": worker.problem,
    }


def audit_record(row: AuditRow, operation: OperationRow | None) -> AuditRecord:
    """Return an audit entry as a value, with the actor and outcome of the operation that it requested."""
    shown = operation or row
    return AuditRecord(
        id=row.id or 0,
        at=row.at,
        actor=shown.actor,
        actor_id=shown.actor_id,
        interface=row.interface,
        verb=row.verb,
        kind=row.kind,
        uuid=row.uuid,
        name=row.name,
        generation=row.generation,
        outcome=shown.outcome,
        detail=shown.detail,
        jid=shown.jid,
        request_id=row.request_id,
        address=row.address,
    )


async def upsert(session: AsyncSession, row_type: type[_Row], uuid: str, columns: dict[str, Any]) -> None:
    """Insert or update the one row of a VM in a table."""
    row = await session.get(row_type, uuid)
    if row is None:
        session.add(row_type(uuid=uuid, **columns))
        return
    for name, value in columns.items():
        setattr(row, name, value)
