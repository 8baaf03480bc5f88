"""Rows to values and back: the one place that knows both."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, TypeVar, get_args

import msgspec
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.facts import VM, Assumed, Problem, Push, Real, Verb, Wanted, Worker
from master_service.models import PushRow, RealRow, VMachineRow, WorkerRow
from worker_service.contract import Capacity, Foreign, Spec, VMStatus

Joined = tuple[VMachineRow, RealRow | None, PushRow | None, WorkerRow | None]
_VERBS = frozenset(get_args(Verb))
_Row = TypeVar("_Row", RealRow, PushRow)


def joined() -> Any:
    """The query for whole VMs; rows of it go to `vm_of`."""
    return (
        select(VMachineRow, RealRow, PushRow, WorkerRow)
        .outerjoin(RealRow, col(RealRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(PushRow, col(PushRow.uuid) == col(VMachineRow.uuid))
        .outerjoin(WorkerRow, col(WorkerRow.id) == col(VMachineRow.worker))
    )


async def load_for_change(session: AsyncSession, uuids: Collection[str]) -> dict[str, VM]:
    """VMs by uuid inside a write transaction; nobody else changes them until it ends."""
    query = joined().where(col(VMachineRow.uuid).in_(uuids)).with_for_update(of=VMachineRow)
    return {row[0].uuid: vm_of(row) for row in await session.exec(query)}


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
    }


def real_of(row: RealRow) -> Real:
    """What was reported, as a value."""
    return Real(
        status=msgspec.convert(row.status, VMStatus) if row.status is not None else None,
        real_at=row.real_at,
        since=row.since,
        misses=row.misses,
        tombstone=row.tombstone,
    )


def real_columns(real: Real) -> dict[str, Any]:
    """The columns of `real` for a value."""
    return {
        "status": msgspec.to_builtins(real.status) if real.status is not None else None,
        "real_at": real.real_at,
        "since": real.since,
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
