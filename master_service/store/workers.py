"""Enrolling, draining and fencing of workers. Each decision and its audit entries are one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Final

from sqlalchemy import and_, delete, func, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import NotFound
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.tables import DispatchRow, VMachineRow, WorkerRow
from master_service.planning.vm import VM, DesiredState, ObservedState, Worker
from master_service.store.desired import ChangeRequest, audit, new_vm
from master_service.store.history import record_desired_change
from master_service.store.mapping import desired_columns, lock, vm_of, vm_select, worker_of, write_observed

_MOST_WAITING: Final = 1000
"""Workers that are shown as waiting. Any minion can claim to be one, under any name."""


class WorkerStore:
    """Writer of the decisions of users about workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def keys(self) -> dict[str, str]:
        """Return the keys of the enrolled workers by id."""
        async with self._database.read() as session:
            rows = await session.exec(select(WorkerRow.id, WorkerRow.key).where(col(WorkerRow.key) != ""))
            return dict(rows.all())

    @database_method
    async def claim(self, worker_id: str, key: str, now: datetime) -> None:
        """Store the key that a minion of this name presented, for an administrator to compare."""
        async with self._database.write() as session:
            row = (await session.exec(select(WorkerRow).where(WorkerRow.id == worker_id).with_for_update())).first()
            if row is None:
                waiting = select(func.count()).select_from(WorkerRow).where(col(WorkerRow.key) == "")
                if (await session.exec(waiting)).one() >= _MOST_WAITING:
                    return
                row = WorkerRow(id=worker_id, unreachable_since=now)
            row.claimed_key = "" if key == row.key else key
            session.add(row)

    @database_method
    async def enroll(self, worker_id: str, key: str, api_url: str | None, request: ChangeRequest) -> None:
        """Believe what is signed with this key in the name of this worker, from now on. `api_url` None: as it is."""
        async with self._database.write() as session:
            row = (await session.exec(select(WorkerRow).where(WorkerRow.id == worker_id).with_for_update())).first()
            row = row or WorkerRow(id=worker_id, unreachable_since=request.at)
            row.key, row.claimed_key = key, ""
            if api_url is not None:
                row.api_url = api_url
            session.add(row)
            audit(session, request, name=worker_id)

    @database_method
    async def unenroll(self, worker_id: str, request: ChangeRequest) -> None:
        """Believe nothing in the name of this worker any more. Raises NotFound."""
        async with self._database.write() as session:
            row = await _row(session, worker_id)
            row.key, row.problem = "", None
            row.unreachable_since = row.unreachable_since or request.at
            audit(session, request, name=worker_id)

    @database_method
    async def drain(self, worker_id: str, request: ChangeRequest) -> None:
        """Place no new VMs on a worker. Raises NotFound."""
        async with self._database.write() as session:
            row = await _row(session, worker_id)
            row.draining = True
            audit(session, request, name=worker_id)

    @database_method
    async def undrain(self, worker_id: str, request: ChangeRequest) -> None:
        """Place VMs on a worker again, whether it was drained or fenced. Raises NotFound."""
        async with self._database.write() as session:
            row = await _row(session, worker_id)
            row.draining, row.fenced_at = False, None
            audit(session, request, name=worker_id)

    @database_method
    async def fence(
        self,
        worker_id: str,
        check: Callable[[Worker], None],
        edit: Callable[[VM], DesiredState | None],
        request: ChangeRequest,
    ) -> list[str]:
        """Record that a worker is switched off, and change its VMs by `edit`; return the uuids of those that changed.

        Of the observed state of a VM that is moved away only its last saves remain: the rest describes a copy that does
        not count any more.
        Raises NotFound, and the errors of `check`; then nothing is written.
        """
        changed: list[str] = []
        async with self._database.write() as session:
            assigned = and_(col(VMachineRow.worker) == worker_id, col(VMachineRow.destroyed_at).is_(None))
            await lock(session, assigned)  # VMs before workers, in every transaction
            row = await _row(session, worker_id)
            check(worker_of(row))
            row.fenced_at = request.at
            audit(session, request, name=worker_id)
            await lock(session, assigned)  # with those that were placed on it meanwhile
            for vm in [vm_of(found) for found in await session.exec(vm_select().where(assigned))]:
                edited = edit(vm)
                if edited is None:
                    continue
                columns = desired_columns(replace(edited, version=edited.version + 1))
                await session.exec(update(VMachineRow).where(col(VMachineRow.uuid) == vm.uuid).values(**columns))
                left = ObservedState(saves=vm.observed.saves)
                if edited.worker is None:
                    await write_observed(session, {vm.uuid: (vm.observed, left)})
                    await session.exec(delete(DispatchRow).where(col(DispatchRow.uuid) == vm.uuid))
                kept = replace(vm, desired=edited) if edited.worker else replace(new_vm(edited), observed=left)
                record_desired_change(session, vm.desired, kept, request.verb, request.actor.name, request.at)
                audit(session, request, name=edited.name, uuid=vm.uuid, generation=edited.generation)
                changed.append(vm.uuid)
            notify_on_commit(session, changed)
        return changed


async def _row(session: AsyncSession, worker_id: str) -> WorkerRow:
    row = (await session.exec(select(WorkerRow).where(WorkerRow.id == worker_id).with_for_update())).first()
    if row is None:
        raise NotFound(f"There is no worker {worker_id!r}.", "`saltern workers` shows those that ever answered.")
    session.add(row)
    return row
