"""Reports of workers: the only writer of observed states and of workers. A minion writes only VMs assigned to it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from datetime import datetime

from sqlalchemy import and_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.settings import Settings
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import VMachineRow, WorkerRow
from master_service.planning.vm import VM, ObservedState, Worker
from master_service.policy.incidents import Incident
from master_service.policy.poll_digest import Observation, Poll, digest_event, digest_poll
from master_service.store import operations
from master_service.store.history import record_observed
from master_service.store.mapping import (
    load_for_change,
    load_vms,
    lock,
    reported_columns,
    worker_of,
    write_observed,
)
from master_service.store.notices import raise_all
from worker_service.contract import VMStatus


class ObservedStore:
    """Writer of what workers report."""

    def __init__(self, database: Database, term: FencingToken, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._settings = settings

    @database_method
    async def status(self, minion: str, status: VMStatus, now: datetime) -> ObservedState | None:
        """Store a status from an event; return the state after it, or None if it was no news about its own VM."""
        async with self._database.write() as session:
            await self._term.check(session)
            vm = (await load_for_change(session, [status.uuid])).get(status.uuid)
            if vm is None or (effects := digest_event(vm, minion, status, now, self._settings)) is None:
                return None
            observation, incidents = effects
            await _write(session, [observation], incidents, now)
            return observation.after

    @database_method
    async def destroyed(self, minion: str, uuid: str, generation: int, now: datetime) -> bool:
        """Store a worker's report that it destroyed a VM at `generation`; return whether the VM is its own.

        One that was not assigned to it is no longer listed there either.
        """
        async with self._database.write() as session:
            await self._term.check(session)
            vm = (await load_for_change(session, [uuid])).get(uuid)
            row = await session.get(WorkerRow, minion)
            if row is not None and any(each["uuid"] == uuid for each in row.unassigned_vms):
                row.unassigned_vms = [each for each in row.unassigned_vms if each["uuid"] != uuid]
            if vm is None or vm.desired.worker != minion:
                return False
            await _write(session, [Observation(vm=vm, after=vm.observed.mark_destroyed(generation, now))], [], now)
            return True

    @database_method
    async def poll(self, poll: Poll) -> Sequence[VM]:
        """Store the outcome of a poll: VMs, missing VMs, tombstones, capacities, unassigned VMs, silent workers.

        Return all VMs that are not destroyed as they are known now, whether or not their workers answered. If the poll
        is not complete, return those of the workers that have answered.
        """
        async with self._database.write() as session:
            await self._term.check(session)
            alive = col(VMachineRow.destroyed_at).is_(None)
            # Once all have answered, each VM may be found on another worker than its own.
            chosen = alive if poll.complete else and_(col(VMachineRow.worker).in_(poll.replies), alive)
            await lock(session, chosen)
            vms = await load_vms(session, chosen)
            rows = {row.id: row for row in await session.exec(select(WorkerRow))}
            workers = {row.id: worker_of(row) for row in rows.values() if row.key}
            since = select(VMachineRow.uuid).where(col(VMachineRow.destroyed_at) >= poll.requested_at)
            destroyed = frozenset((await session.exec(since)).all())
            effects = digest_poll(vms, workers, replace(poll, destroyed=destroyed), self._settings)
            for worker in effects.workers:
                _write_worker(session, rows[worker.id], worker)
            await _write(session, effects.observations, effects.incidents, poll.requested_at)
            return effects.vms


async def _write(
    session: AsyncSession, observations: Collection[Observation], incidents: Collection[Incident], now: datetime
) -> None:
    """Write what was observed of locked VMs, and what follows from it: history, notices, operations."""
    await write_observed(session, {each.vm.uuid: (each.vm.observed, each.after) for each in observations})
    for each in observations:
        record_observed(session, each.vm, each.updated, now)
    await raise_all(session, incidents, now)
    await operations.mark_observed(session, [each.updated for each in observations])
    notify_on_commit(session, [each.vm.uuid for each in observations])


def _write_worker(session: AsyncSession, row: WorkerRow, worker: Worker) -> None:
    for name, value in reported_columns(worker).items():
        setattr(row, name, value)
    session.add(row)
