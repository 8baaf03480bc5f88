"""Rows to values and back: the one place that knows both."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar, get_args

import msgspec
from sqlalchemy import Table as SqlTable
from sqlalchemy import delete, insert, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.tables import PushRow, RealRow, Table, VMachineRow, WorkerRow
from master_service.planning.vm import VM, Assumed, Problem, Push, Real, Verb, Wanted, Worker
from worker_service.contract import Capacity, Foreign, Spec, VMStatus

Joined = tuple[VMachineRow, RealRow | None, PushRow | None, WorkerRow | None]
_VERBS = frozenset(get_args(Verb))
_METADATA = Table.metadata.tables
_VMACHINE, _REAL, _PUSH, _WORKER = (_METADATA[name] for name in ("vmachine", "real", "push", "worker"))


def _shape(table: SqlTable) -> Any:
    """Rows of a table as tuples that have its columns' names, as its ORM class has."""
    return namedtuple(table.name, [column.name for column in table.c])  # noqa: PYI024 - made from the table


_Wish, _Real, _Push = (_shape(table) for table in (_VMACHINE, _REAL, _PUSH))
_ENDS = (len(_VMACHINE.c), len(_VMACHINE.c) + len(_REAL.c))
_MANY = select_columns(*_VMACHINE.c, *_REAL.c, *_PUSH.c).select_from(
    _VMACHINE.outerjoin(_REAL, _REAL.c.uuid == _VMACHINE.c.uuid).outerjoin(_PUSH, _PUSH.c.uuid == _VMACHINE.c.uuid)
)
_Row = TypeVar("_Row", RealRow, PushRow)


def joined() -> Any:
    """The query for whole VMs; rows of it go to `vm_of`."""
    return (
        select(VMachineRow, RealRow, PushRow, WorkerRow)
        .outerjoin(RealRow, col(RealRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(PushRow, col(PushRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(WorkerRow, col(WorkerRow.id) == col(VMachineRow.worker))
    )


async def load_many(session: AsyncSession, condition: Any) -> list[VM]:
    """Whole VMs by the thousand, in a fifth of the time that `joined` takes: rows as they come, each worker once."""
    connection = await session.connection()
    as_they_come: Any = await connection.execute(select_columns(_WORKER))
    workers = {row.id: worker_of(row) for row in as_they_come}
    found: list[VM] = []
    for row in await connection.execute(_MANY.where(condition)):
        wish = _Wish._make(row[: _ENDS[0]])
        real = _Real._make(row[_ENDS[0] : _ENDS[1]])
        push = _Push._make(row[_ENDS[1] :])
        vm = VM(
            assumed=assumed_of(wish),
            real=real_of(real) if real.uuid is not None else Real(),
            push=push_of(push) if push.uuid is not None else Push(),
            worker=workers.get(wish.worker),
        )
        found.append(vm)
    return found


async def write_reals(session: AsyncSession, changes: Mapping[str, tuple[Real, Real]]) -> None:
    """Write by uuid what became (second) of what was reported (first), for many VMs with few statements."""
    connection = await session.connection()
    older = [uuid for uuid, (before, after) in changes.items() if replace(before, real_at=after.real_at) == after]
    for at in {changes[uuid][1].real_at for uuid in older}:
        # Mostly nothing is new but the time.
        same = [uuid for uuid in older if changes[uuid][1].real_at == at]
        for part in _parts(same):
            await connection.execute(update(_REAL).where(_REAL.c.uuid.in_(part)).values(real_at=at))
    newer = [uuid for uuid in changes if uuid not in set(older)] if len(older) < len(changes) else []
    for part in _parts(newer):
        await connection.execute(delete(_REAL).where(_REAL.c.uuid.in_(part)))
        await connection.execute(insert(_REAL), [{"uuid": uuid, **real_columns(changes[uuid][1])} for uuid in part])


def _parts(uuids: list[str], size: int = 500) -> list[list[str]]:
    return [uuids[start : start + size] for start in range(0, len(uuids), size)]


async def load_for_change(session: AsyncSession, uuids: Collection[str]) -> dict[str, VM]:
    """VMs by uuid inside a write transaction; nobody else changes them until it ends."""
    await lock(session, col(VMachineRow.uuid).in_(uuids))
    return {row[0].uuid: vm_of(row) for row in await session.exec(joined().where(col(VMachineRow.uuid).in_(uuids)))}


async def lock(session: AsyncSession, condition: Any) -> None:
    """Keep others from changing these VMs until the transaction ends. SQLite's writers are alone anyhow.

    A statement of its own: after PostgreSQL waited for a lock it looks anew at the row that was locked, but not at the
    rows joined to it. In one order, so that two that lock several never wait for each other.
    """
    if session.get_bind().dialect.name != "sqlite":
        await session.exec(select(VMachineRow.uuid).where(condition).order_by(VMachineRow.uuid).with_for_update())


def vm_of(row: Joined) -> VM:
    """One row of `joined` as a value."""
    wish, real, push, worker = row
    return VM(
        assumed=assumed_of(wish),
        real=real_of(real) if real else Real(),
        push=push_of(push) if push else Push(),
        worker=worker_of(worker) if worker else None,
    )


def assumed_of(row: VMachineRow) -> Assumed:
    """What is wanted, as a value."""
    return Assumed(
        uuid=row.uuid,
        name=row.name,
        owner=row.owner,
        spec=msgspec.convert(row.spec, Spec),
        wanted=Wanted(row.wanted),
        generation=row.generation,
        asked=row.asked,
        version=row.version,
        created_at=row.created_at,
        changed_at=row.changed_at,
        pin=row.pin,
        worker=row.worker,
        destroyed_at=row.destroyed_at,
        labels=row.labels,
    )


def assumed_columns(assumed: Assumed) -> dict[str, Any]:
    """The columns of `vmachine` for a value."""
    return {
        "uuid": assumed.uuid,
        "name": assumed.name,
        "owner": assumed.owner,
        "spec": msgspec.to_builtins(assumed.spec),
        "wanted": assumed.wanted.value,
        "generation": assumed.generation,
        "asked": assumed.asked,
        "version": assumed.version,
        "created_at": assumed.created_at,
        "changed_at": assumed.changed_at,
        "pin": assumed.pin,
        "worker": assumed.worker,
        "destroyed_at": assumed.destroyed_at,
        "labels": dict(assumed.labels),
    }


def real_of(row: RealRow) -> Real:
    """What was reported, as a value."""
    return Real(
        status=msgspec.convert(row.status, VMStatus) if row.status is not None else None,
        real_at=row.real_at,
        since=row.since,
        moved_at=row.moved_at,
        misses=row.misses,
        tombstone=row.tombstone,
    )


def real_columns(real: Real) -> dict[str, Any]:
    """The columns of `real` for a value."""
    return {
        "status": msgspec.to_builtins(real.status) if real.status is not None else None,
        "real_at": real.real_at,
        "since": real.since,
        "moved_at": real.moved_at,
        "misses": real.misses,
        "tombstone": real.tombstone,
    }


def push_of(row: PushRow) -> Push:
    """The pusher's bookkeeping, as a value."""
    problem = Problem(code=row.problem_code, message=row.problem_message or "") if row.problem_code else None
    verb: Verb | None = row.verb if row.verb in _VERBS else None  # type: ignore[assignment]
    return Push(
        asked=row.asked,
        generation=row.generation,
        verb=verb,
        jid=row.jid,
        sent_at=row.sent_at,
        attempts=row.attempts,
        next_at=row.next_at,
        accepted=row.accepted,
        problem=problem,
        redone=tuple(datetime.fromisoformat(at) for at in row.redone),
        reboots=tuple(datetime.fromisoformat(at) for at in row.reboots),
        corrected=row.corrected,
        tried=tuple(row.tried),
    )


def push_columns(push: Push) -> dict[str, Any]:
    """The columns of `push` for a value."""
    return {
        "asked": push.asked,
        "generation": push.generation,
        "verb": push.verb,
        "jid": push.jid,
        "sent_at": push.sent_at,
        "attempts": push.attempts,
        "next_at": push.next_at,
        "accepted": push.accepted,
        "problem_code": push.problem.code if push.problem else None,
        "problem_message": push.problem.message if push.problem else None,
        "redone": [at.isoformat() for at in push.redone],
        "reboots": [at.isoformat() for at in push.reboots],
        "corrected": push.corrected,
        "tried": list(push.tried),
    }


def worker_of(row: WorkerRow) -> Worker:
    """A worker, as a value."""
    return Worker(
        id=row.id,
        capacity=msgspec.convert(row.capacity, Capacity) if row.capacity is not None else None,
        version=row.version,
        seen_at=row.seen_at,
        unreachable_since=row.unreachable_since,
        draining=row.draining,
        fenced_at=row.fenced_at,
        foreign=tuple(msgspec.convert(f, Foreign) for f in row.foreign),
        strangers=tuple(msgspec.convert(f, Foreign) for f in row.strangers),
        problem=row.problem,
    )


async def put(session: AsyncSession, row_type: type[_Row], uuid: str, columns: dict[str, Any]) -> None:
    """Write the one row of a VM, new or not."""
    row = await session.get(row_type, uuid)
    if row is None:
        session.add(row_type(uuid=uuid, **columns))
        return
    for name, value in columns.items():
        setattr(row, name, value)
