"""Queries about VMs and workers. They never write."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any, Final

from sqlalchemy import func, or_, text, tuple_
from sqlmodel import col, select

from master_service.db.engine import Database, database_method
from master_service.db.tables import DispatchRow, ObservedRow, VMachineRow, WorkerRow
from master_service.planning.placement import Candidate
from master_service.planning.vm import VM, ObservedState, Worker
from master_service.store.mapping import desired_of, observed_of, vm_of, vm_select, worker_of
from worker_service.contract import Status

_CHUNK: Final = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class Query:
    """Which VMs to list. `text`: part of the name, or the start of the uuid. `after`: (name, uuid) of the last one.

    `name` is the whole one. `owner` is the name of an account, also of earlier ones with that name, and `owner_id` the
    id of one.
    """

    owner: str | None = None
    owner_id: str | None = None
    worker: str | None = None
    name: str | None = None
    text: str = ""
    destroyed: bool = False
    after: tuple[str, str] | None = None

    def statement(self) -> Any:
        """Return the query for these VMs."""
        query = vm_select().order_by(VMachineRow.name, VMachineRow.uuid)
        if not self.destroyed:
            query = query.where(col(VMachineRow.destroyed_at).is_(None))
        if self.owner is not None:
            query = query.where(col(VMachineRow.owner) == self.owner)
        if self.owner_id is not None:
            query = query.where(col(VMachineRow.owner_id) == self.owner_id)
        if self.worker is not None:
            query = query.where(col(VMachineRow.worker) == self.worker)
        if self.name is not None:
            query = query.where(col(VMachineRow.name) == self.name)
        if self.text:
            named = func.lower(col(VMachineRow.name)).contains(self.text.lower(), autoescape=True)
            query = query.where(or_(named, col(VMachineRow.uuid).startswith(self.text.lower(), autoescape=True)))
        if self.after is not None:
            query = query.where(tuple_(col(VMachineRow.name), col(VMachineRow.uuid)) > tuple_(*self.after))
        return query


class VmQueries:
    """Reader of VMs and workers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def vms(self, uuids: Collection[str] | None = None) -> list[VM]:
        """Return the VMs with these uuids, also destroyed ones; without uuids all live VMs. Sorted by name."""
        query = vm_select().order_by(VMachineRow.name, VMachineRow.created_at)
        if uuids is None:
            query = query.where(col(VMachineRow.destroyed_at).is_(None))
        else:
            query = query.where(col(VMachineRow.uuid).in_(uuids))
        async with self._database.read() as session:
            return [vm_of(row) for row in await session.exec(query)]

    @database_method
    async def vm(self, id_or_name: str) -> VM | None:
        """Return a VM by its uuid (also a destroyed one), else a live VM by its name."""
        by_uuid = await self.vms([id_or_name])
        if by_uuid:
            return by_uuid[0]
        query = vm_select().where(col(VMachineRow.name) == id_or_name, col(VMachineRow.destroyed_at).is_(None))
        async with self._database.read() as session:
            row = (await session.exec(query)).first()
        return vm_of(row) if row else None

    @database_method
    async def page(self, query: Query, keep: Callable[[VM], bool], limit: int) -> tuple[list[VM], bool]:
        """Return at most `limit` VMs after `query.after`, sorted by (name, uuid), and whether more follow.

        Pages go by keys, not by counts: VMs that come or go meanwhile neither repeat nor hide others. `keep` filters by
        values that are computed, such as the status.
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
        """Return all workers that ever answered, sorted by id."""
        async with self._database.read() as session:
            rows = await session.exec(select(WorkerRow).order_by(WorkerRow.id))
            return [worker_of(row) for row in rows]

    @database_method
    async def candidates(self) -> dict[str, Candidate]:
        """Return all workers, each with what was promised since it last reported its free capacity.

        That is: starts sent since then, or not reported yet, or first reported by an event since then, but no failed
        ones. In doubt a VM counts twice until the next poll: that costs less than a start that a full worker refuses.
        """
        started = (
            select(VMachineRow, ObservedRow, DispatchRow)
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
        # One session is one snapshot: a poll in between would free capacity that has just been promised.
        async with self._database.read() as session:
            workers = await session.exec(select(WorkerRow))
            found = {row.id: Candidate(worker=worker_of(row)) for row in workers}
            for row, observed, dispatch in await session.exec(started):
                desired = desired_of(row)
                if desired.worker in found and not (
                    observed and _has_failed(observed_of(observed), dispatch.generation)
                ):
                    found[desired.worker] = promised(
                        found[desired.worker], desired.spec.cpu_count, desired.spec.mem_size
                    )
        return found

    @database_method
    async def ping(self) -> None:
        """Raise SQLAlchemy's error when the database does not answer."""
        async with self._database.read() as session:
            await session.connection()
            await session.exec(text("SELECT 1"))  # type: ignore[call-overload]


def _has_failed(observed: ObservedState, generation: int) -> bool:
    """Return whether the start of this generation has failed: it needs no room any more."""
    failed = observed.status is not None and observed.status.status is Status.FAILED_TO_START
    return failed and observed.generation >= generation


def promised(candidate: Candidate, cpu_count: int, mem_size: int) -> Candidate:
    """Return the candidate with one more VM promised to it."""
    return replace(
        candidate,
        promised_vms=candidate.promised_vms + 1,
        promised_cpu=candidate.promised_cpu + cpu_count,
        promised_mem=candidate.promised_mem + mem_size,
    )
