"""Requested changes of VMs, and their outcomes. Each has the id of the audit entry about its request.

Writers lock the VM's row first. Only `_write` changes operations.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from sqlalchemy import or_, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.engine import Database, database_method
from master_service.db.tables import AuditRow, DispatchRow, OperationRow, VMachineRow
from master_service.planning import outcomes
from master_service.planning.observed import last_reported_status
from master_service.planning.outcomes import OPEN_OUTCOMES, TRANSITIONS, Operation, Outcome
from master_service.planning.vm import VM
from master_service.policy.audit import EXTERNAL_INTERFACES, AuditRecord
from master_service.store.mapping import audit_record, lock

_OPEN: Final = [outcome.value for outcome in OPEN_OUTCOMES]
_MOVABLE: Final = [outcome.value for outcome, after in TRANSITIONS.items() if after]
_OURS: Final = col(OperationRow.interface).not_in(EXTERNAL_INTERFACES)
_COLUMNS: Final[tuple[Any, ...]] = (
    OperationRow.id, OperationRow.verb, OperationRow.generation, OperationRow.requested_at,
    OperationRow.uuid, OperationRow.outcome, OperationRow.detail, OperationRow.jid,
)  # fmt: skip
_AT_ONCE: Final = 500
"""Ids in one statement."""


async def mark_sent(session: AsyncSession, uuids: Collection[str], jid: str) -> None:
    """Store the Salt job that carries the newest commands for these VMs."""
    newest = select(DispatchRow.uuid, DispatchRow.generation).where(col(DispatchRow.uuid).in_(uuids))
    generations = dict((await session.exec(newest)).all())
    await _change(
        session,
        lambda operation: outcomes.after_send(operation, jid, generations.get(operation.uuid, 0)),
        _OURS,
        col(OperationRow.uuid).in_(uuids),
        col(OperationRow.jid) == "",
    )


async def mark_answered(session: AsyncSession, uuid: str, generation: int, reason: str | None) -> None:
    """Store a worker's answer to the command of `generation`. `reason`: of its refusal."""
    await _change(
        session,
        lambda operation: outcomes.after_answer(operation, generation, reason),
        _OURS,
        col(OperationRow.uuid) == uuid,
        col(OperationRow.outcome).in_(_MOVABLE),
    )


async def mark_observed(session: AsyncSession, vms: Collection[VM]) -> None:
    """Store the outcomes of open operations that reports of these VMs show."""
    if not vms:
        return
    of_one = [col(OperationRow.uuid) == next(iter(vms)).uuid] if len(vms) == 1 else []
    found: dict[str, list[Operation]] = {}
    for operation in await _load(session, _OURS, col(OperationRow.outcome).in_(_OPEN), *of_one):
        found.setdefault(operation.uuid, []).append(operation)
    after: list[Operation] = []
    for vm in vms:
        if vm.uuid in found:
            message = vm.observed.status.message if vm.observed.status else ""
            observed = (last_reported_status(vm), vm.observed.generation, vm.observed.since, message)
            after += outcomes.after_report(found[vm.uuid], *observed)
    before = {operation.id: operation for operations in found.values() for operation in operations}
    await _write(session, [(before[operation.id], operation) for operation in after])


async def mark_superseded(session: AsyncSession, uuid: str) -> None:
    """Supersede the commands for a VM that have not been sent."""
    queued = col(OperationRow.outcome) == Outcome.QUEUED.value
    await _change(session, outcomes.after_new_command, col(OperationRow.uuid) == uuid, queued)


async def mark_destroyed(session: AsyncSession, uuid: str) -> None:
    """Close all open operations on a VM that is destroyed."""
    await _change(session, outcomes.after_destroy, col(OperationRow.uuid) == uuid, col(OperationRow.outcome).in_(_OPEN))


class OperationStore:
    """Reader of operations, and writer of those that the pusher does not send."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def one_shot_sent(self, id_: int) -> None:
        """Mark a one-shot operation as sent to a worker that has not answered yet."""
        await self._move(id_, outcomes.after_one_shot_send)

    @database_method
    async def one_shot_answered(self, id_: int, reason: str | None) -> None:
        """Store a worker's answer to a one-shot operation. `reason`: of its refusal."""
        await self._move(id_, lambda operation: outcomes.after_one_shot_answer(operation, reason))

    @database_method
    async def one_shot_refused(self, id_: int, reason: str) -> None:
        """Mark a one-shot operation as refused before it reached a worker."""
        await self._move(id_, lambda operation: outcomes.after_refused_send(operation, reason))

    async def _move(self, id_: int, change: Callable[[Operation], Operation]) -> None:
        by_id = col(OperationRow.id) == id_
        async with self._database.write() as session:
            await lock(session, col(VMachineRow.uuid).in_(select(OperationRow.uuid).where(by_id)))
            await _change(session, change, by_id)

    @database_method
    async def newest(self, uuid: str, verb: str) -> AuditRecord | None:
        """Return the newest operation with this verb on a VM."""
        of_vm = (col(OperationRow.uuid) == uuid, col(OperationRow.verb) == verb)
        query = _SELECT.where(*of_vm).order_by(col(OperationRow.id).desc())
        async with self._database.read() as session:
            found = (await session.exec(query.limit(1))).first()
        return audit_record(*found) if found else None

    @database_method
    async def page(self, owner_id: str | None, vm: str | None, before: int | None, limit: int) -> list[AuditRecord]:
        """Return operations, newest first. `owner_id`: only on the VMs of this account; `vm`: a uuid, or a name."""
        query = _OF_KNOWN_VMS.order_by(col(OperationRow.id).desc()).limit(limit)
        if owner_id is not None:
            query = query.where(VMachineRow.owner_id == owner_id)
        if vm is not None:
            query = query.where(or_(col(OperationRow.uuid) == vm, col(AuditRow.name) == vm))
        if before is not None:
            query = query.where(col(OperationRow.id) < before)
        async with self._database.read() as session:
            return [audit_record(*found) for found in await session.exec(query)]

    @database_method
    async def one(self, id_: int) -> AuditRecord | None:
        """Return one operation on a VM that is known."""
        async with self._database.read() as session:
            found = (await session.exec(_OF_KNOWN_VMS.where(OperationRow.id == id_))).first()
        return audit_record(*found) if found else None


_SELECT = select(AuditRow, OperationRow).join(OperationRow, col(OperationRow.id) == col(AuditRow.id))
_OF_KNOWN_VMS = _SELECT.join(VMachineRow, col(VMachineRow.uuid) == col(OperationRow.uuid)).where(_OURS)


async def _load(session: AsyncSession, *conditions: Any) -> list[Operation]:
    rows = await (await session.connection()).execute(select_columns(*_COLUMNS).where(*conditions))
    return [Operation(*row)._replace(outcome=Outcome(row.outcome)) for row in rows]


async def _change(session: AsyncSession, change: Callable[[Operation], Operation], *conditions: Any) -> None:
    operations = await _load(session, *conditions)
    await _write(session, [(operation, change(operation)) for operation in operations])


async def _write(session: AsyncSession, changes: Iterable[tuple[Operation, Operation]]) -> None:
    """Write changes of operations, equal ones together. An outcome that was moved meanwhile stays."""
    groups: dict[tuple[Outcome, Outcome, str, str], list[int]] = {}
    for before, after in changes:
        if after != before:
            groups.setdefault((before.outcome, after.outcome, after.detail, after.jid), []).append(after.id)
    for (was, outcome, detail, jid), ids in groups.items():
        values = {"outcome": outcome.value, "detail": detail, "jid": jid}
        for start in range(0, len(ids), _AT_ONCE):
            of = (col(OperationRow.id).in_(ids[start : start + _AT_ONCE]), col(OperationRow.outcome) == was.value)
            await session.exec(update(OperationRow).where(*of).values(**values))
