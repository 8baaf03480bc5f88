"""Questions to the database. Nothing here writes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import func, or_, text, tuple_
from sqlmodel import col, select

from master_service.db.engine import Database, database_method
from master_service.db.tables import DispatchRow, ObservedRow, VMachineRow, WorkerRow
from master_service.planning.placement import Candidate
from master_service.planning.vm import VM, Worker
from master_service.store.mapping import desired_of, vm_of, vm_select, worker_of

_CHUNK: Final = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which VMs to list. `text`: part of the name, or how the uuid begins. `after`: (name, uuid) of the last seen.

    `owners`: each of them is its owner; two different ones match nothing.
    """

    owners: frozenset[str] = frozenset()
    worker: str | None = None
    text: str = ""
    destroyed: bool = False
    after: tuple[str, str] | None = None

    def statement(self) -> Any:
        """The same as a query."""
        query = vm_select().order_by(VMachineRow.name, VMachineRow.uuid)
        if not self.destroyed:
            query = query.where(col(VMachineRow.destroyed_at).is_(None))
        for owner in self.owners:
            query = query.where(col(VMachineRow.owner) == owner)
        if self.worker is not None:
            query = query.where(col(VMachineRow.worker) == self.worker)
        if self.text:
            named = func.lower(col(VMachineRow.name)).contains(self.text.lower(), autoescape=True)
            query = query.where(or_(named, col(VMachineRow.uuid).startswith(self.text.lower(), autoescape=True)))
        if self.after is not None:
            query = query.where(tuple_(col(VMachineRow.name), col(VMachineRow.uuid)) > tuple_(*self.after))
        return query


class VmQueries:
    """Questions to the database."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def vms(self, uuids: Collection[str] | None = None) -> list[VM]:
        """The VMs of these uuids, also destroyed ones; without uuids all that are not destroyed. Sorted by name."""
        query = vm_select().order_by(VMachineRow.name, VMachineRow.created_at)
        if uuids is None:
            query = query.where(col(VMachineRow.destroyed_at).is_(None))
        else:
            query = query.where(col(VMachineRow.uuid).in_(uuids))
        async with self._database.read() as session:
            return [vm_of(row) for row in await session.exec(query)]

    @database_method
    async def vm(self, id_or_name: str) -> VM | None:
        """One VM by uuid (also a destroyed one), else by the name of one that is not destroyed."""
        by_uuid = await self.vms([id_or_name])
        if by_uuid:
            return by_uuid[0]
        query = vm_select().where(col(VMachineRow.name) == id_or_name, col(VMachineRow.destroyed_at).is_(None))
        async with self._database.read() as session:
            row = (await session.exec(query)).first()
        return vm_of(row) if row else None

    @database_method
    async def page(self, query: Query, keep: Callable[[VM], bool], limit: int) -> tuple[list[VM], bool]:
        """At most `limit` VMs in the order of (name, uuid) from behind `query.after`; and whether there are more.

        By keys, not by counting: VMs that come or go meanwhile neither repeat nor hide others. `keep` decides what is
        no column, such as the status, which is computed.
        """
        found: list[VM] = []
        after = query.after
        async with self._database.read() as session:
            while True:
                rows = (await session.exec(replace(query, after=after).statement().limit(_CHUNK))).all()
                for vm in map(vm_of, rows):
                    after = (vm.desired.name, vm.uuid)
                    if not keep(vm):
                        continue
                    if len(found) == limit:
                        return found, True
                    found.append(vm)
                if len(rows) < _CHUNK:
                    return found, False

    @database_method
    async def workers(self) -> list[Worker]:
        """All workers that ever answered, sorted by id."""
        async with self._database.read() as session:
            rows = await session.exec(select(WorkerRow).order_by(WorkerRow.id))
            return [worker_of(row) for row in rows]

    @database_method
    async def candidates(self) -> dict[str, Candidate]:
        """All workers, and what was promised on each that does not show yet in what it last told to be free.

        That is: starts sent since then, or not reported yet, or first reported by an event since then. In doubt a VM
        counts twice until the next poll: a worker that is too full for one refuses it, and that costs more.
        """
        started = (
            select(VMachineRow)
            .join(DispatchRow, col(DispatchRow.uuid) == col(VMachineRow.uuid))
            .join(WorkerRow, col(WorkerRow.id) == col(VMachineRow.worker))
            .outerjoin(ObservedRow, col(ObservedRow.uuid) == col(VMachineRow.uuid))
            .where(
                col(VMachineRow.destroyed_at).is_(None),
                col(DispatchRow.verb) == "start",
                col(DispatchRow.problem_code).is_(None),
                or_(
                    col(DispatchRow.sent_at) >= col(WorkerRow.seen_at),
                    col(ObservedRow.since).is_(None),
                    col(ObservedRow.since) > col(WorkerRow.seen_at),
                ),
            )
        )
        # One session, one snapshot: a poll in between would make room out of what it has just counted.
        async with self._database.read() as session:
            workers = await session.exec(select(WorkerRow))
            found = {row.id: Candidate(worker=worker_of(row)) for row in workers}
            for row in await session.exec(started):
                assumed = desired_of(row)
                if assumed.worker in found:
                    found[assumed.worker] = promised(
                        found[assumed.worker], assumed.spec.cpu_count, assumed.spec.mem_size
                    )
        return found

    @database_method
    async def ping(self) -> None:
        """Raise what SQLAlchemy raises when the database does not answer."""
        async with self._database.read() as session:
            await session.connection()
            await session.exec(text("SELECT 1"))  # type: ignore[call-overload]


def promised(candidate: Candidate, cpu_count: int, mem_size: int) -> Candidate:
    """The candidate with one more VM promised to it."""
    return replace(
        candidate,
        promised_cpu=candidate.promised_cpu + cpu_count,
        promised_mem=candidate.promised_mem + mem_size,
    )
