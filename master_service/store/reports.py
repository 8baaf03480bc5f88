"""What workers report: the only writer of real facts and of workers. A minion writes only VMs assigned to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime

import msgspec
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.database import Database, uninterrupted
from master_service.facts import VM, after_list
from master_service.models import RealRow, VMachineRow, WorkerRow
from master_service.store.rows import joined, load_for_change, put, real_columns, vm_of
from worker_service.contract import Foreign, ListReply, VMStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """The outcome of one poll. `refused`: minions that answered with something else than a list, and what it was."""

    asked_at: datetime
    replies: Mapping[str, ListReply]
    refused: Mapping[str, str] = field(default_factory=dict)


class Reports:
    """What workers report."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @uninterrupted
    async def status(self, minion: str, status: VMStatus, now: datetime) -> bool:
        """Keep a status told by an event; return whether it was news about a VM of that minion."""
        async with self._database.write() as session:
            vm = (await load_for_change(session, [status.uuid])).get(status.uuid)
            if vm is None or vm.assumed.worker != minion or vm.real.is_newer_than(status):
                return False
            if vm.real.tombstone is not None and status.generation <= vm.real.tombstone:
                return False
            await put(session, RealRow, vm.uuid, real_columns(vm.real.reported(status, now)))
            return True

    @uninterrupted
    async def buried(self, minion: str, uuid: str, generation: int, now: datetime) -> bool:
        """Keep a worker's word that it destroyed a VM of its own at `generation`."""
        async with self._database.write() as session:
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None or vm.assumed.worker != minion:
                return False
            await put(session, RealRow, uuid, real_columns(vm.real.buried(generation, now)))
            return True

    @uninterrupted
    async def poll(self, poll: Poll) -> None:
        """Keep the outcome of a poll: VMs, missing VMs, tombstones, capacities, strangers, silent workers."""
        async with self._database.write() as session:
            known = {row.id: row for row in await session.exec(select(WorkerRow))}
            vms = await self._assigned(session, set(poll.replies))
            reals = {row.uuid: row for row in await session.exec(select(RealRow))}
            for minion, reply in poll.replies.items():
                own = vms.get(minion, {})
                row = known.get(minion) or WorkerRow(id=minion)
                _write_worker(row, reply, own, poll.asked_at)
                session.add(row)
                for uuid, vm in own.items():
                    real = after_list(vm, reply, poll.asked_at)
                    row_of_vm = reals.get(uuid) or RealRow(uuid=uuid)
                    for name, value in real_columns(real).items():
                        setattr(row_of_vm, name, value)
                    session.add(row_of_vm)
            for minion, row in known.items():
                if minion not in poll.replies:
                    # Since the poll that it first did not answer: the first moment at which we know of its silence.
                    row.unreachable_since = row.unreachable_since or poll.asked_at
                    row.problem = poll.refused.get(minion)
                    session.add(row)

    async def _assigned(self, session: AsyncSession, minions: Collection[str]) -> dict[str, dict[str, VM]]:
        query = joined().where(col(VMachineRow.worker).in_(minions), col(VMachineRow.destroyed_at).is_(None))
        found: dict[str, dict[str, VM]] = {}
        for row in await session.exec(query):
            vm = vm_of(row)
            found.setdefault(str(vm.assumed.worker), {})[vm.uuid] = vm
        return found


def _write_worker(row: WorkerRow, reply: ListReply, own: Mapping[str, VM], asked_at: datetime) -> None:
    strangers = [
        Foreign(uuid=status.uuid, name=status.name, state=status.status)
        for status in reply.vmachines
        if status.uuid not in own
    ]
    row.capacity = msgspec.to_builtins(reply.capacity)
    row.version = reply.version
    row.seen_at = asked_at
    row.unreachable_since = None
    row.foreign = [msgspec.to_builtins(f) for f in reply.foreign]
    row.strangers = [msgspec.to_builtins(s) for s in strangers]
    row.problem = None
