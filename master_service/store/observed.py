"""What workers report: the only writer of real facts and of workers. A minion writes only VMs assigned to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec
from sqlalchemy import and_
from sqlmodel import col, select

from master_service.core.settings import Settings
from master_service.db.engine import Database, tell, uninterrupted
from master_service.db.fencing import Term
from master_service.db.tables import RealRow, VMachineRow, WorkerRow
from master_service.planning.vm import VM, Real, Worker, after_event, after_list
from master_service.policy import incidents
from master_service.store import audit
from master_service.store.history import note_real
from master_service.store.mapping import load_for_change, load_many, lock, put, real_columns, worker_of, write_reals
from master_service.store.notifications import raise_all
from worker_service.contract import Foreign, ListReply, VMStatus


@dataclass(frozen=True, kw_only=True, slots=True)
class Poll:
    """The outcome of one poll. `refused`: minions that answered with something else than a list, and what it was.

    Not `complete`: these have answered so far, which says nothing about all others.
    """

    asked_at: datetime
    replies: Mapping[str, ListReply]
    refused: Mapping[str, str] = field(default_factory=dict)
    complete: bool = True


class Reports:
    """What workers report."""

    def __init__(self, database: Database, term: Term, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._settings = settings

    @uninterrupted
    async def status(self, minion: str, status: VMStatus, now: datetime) -> bool:
        """Keep a status told by an event; return whether it was news about a VM of that minion."""
        async with self._database.write() as session:
            await self._term.confirm(session)
            vm = (await load_for_change(session, [status.uuid])).get(status.uuid)
            if vm is None or (real := after_event(vm, minion, status, now)) is None:
                return False
            await put(session, RealRow, vm.uuid, real_columns(real))
            note_real(session, vm.uuid, minion, vm.real, real, now)
            incident = incidents.of_vm(vm, real, now, self._settings)
            await raise_all(session, [incident] if incident else [], now)
            await audit.seen(session, [replace(vm, real=real)])
            tell(session, [vm.uuid])
            return True

    @uninterrupted
    async def buried(self, minion: str, uuid: str, generation: int, now: datetime) -> bool:
        """Keep a worker's word that it destroyed a VM of its own at `generation`."""
        async with self._database.write() as session:
            await self._term.confirm(session)
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None or vm.assumed.worker != minion:
                return False
            real = vm.real.buried(generation, now)
            await put(session, RealRow, uuid, real_columns(real))
            note_real(session, uuid, minion, vm.real, real, now)
            await audit.seen(session, [replace(vm, real=real)])
            tell(session, [uuid])
            return True

    @uninterrupted
    async def answered_once(self, minion: str, answers: Mapping[str, str | None], jid: str) -> None:
        """Keep by uuid a worker's word on what it was told once, by this job: None, or why it refused that."""
        async with self._database.write() as session:
            await self._term.confirm(session)
            for uuid, vm in (await load_for_change(session, list(answers))).items():
                if vm.assumed.worker == minion:
                    await audit.answered_once(session, uuid, jid, answers[uuid])
                    tell(session, [uuid])

    @uninterrupted
    async def poll(self, poll: Poll) -> list[VM]:
        """Keep the outcome of a poll: VMs, missing VMs, tombstones, capacities, strangers, silent workers.

        A worker's answer to one poll counts once, however often it is given. Returns all VMs that are not destroyed as
        they are known now, whether or not their workers answered; of a poll that is not complete, those of its workers.
        """
        async with self._database.write() as session:
            await self._term.confirm(session)
            alive = col(VMachineRow.destroyed_at).is_(None)
            of_these = and_(col(VMachineRow.worker).in_(poll.replies), alive)
            await lock(session, of_these)
            vms = await load_many(session, alive if poll.complete else of_these)
            known = {row.id: row for row in await session.exec(select(WorkerRow))}
            new = {
                minion: reply
                for minion, reply in poll.replies.items()
                if minion not in known or known[minion].seen_at != poll.asked_at
            }
            own: dict[str, set[str]] = {}
            found: list[incidents.Incident] = []
            changes: dict[str, tuple[Real, Real]] = {}
            silent: dict[str, list[VM]] = {}
            for vm in vms:
                minion = vm.assumed.worker or ""
                if minion not in poll.replies:
                    silent.setdefault(minion, []).append(vm)
                if minion in new:
                    own.setdefault(minion, set()).add(vm.uuid)
                    real = after_list(vm, new[minion], poll.asked_at)
                    if real != vm.real:
                        changes[vm.uuid] = vm.real, real
                        note_real(session, vm.uuid, minion, vm.real, real, poll.asked_at)
                        if incident := incidents.of_vm(vm, real, poll.asked_at, self._settings):
                            found.append(incident)
            await write_reals(session, changes)
            tell(session, changes)
            for minion, reply in new.items():
                row = known.setdefault(minion, WorkerRow(id=minion))
                _write_worker(row, reply, own.get(minion, set()), poll.asked_at)
                session.add(row)
            for minion, row in known.items() if poll.complete else ():
                if minion not in poll.replies:
                    # Since the poll that it first did not answer: the first moment at which we know of its silence.
                    row.unreachable_since = row.unreachable_since or poll.asked_at
                    row.problem = poll.refused.get(minion)
                    session.add(row)
                    found += incidents.of_worker(minion, row.unreachable_since, silent.get(minion, ()))
            await raise_all(session, found, poll.asked_at)
            await audit.seen(session, [replace(vm, real=changes[vm.uuid][1]) for vm in vms if vm.uuid in changes])
            workers = {row.id: worker_of(row) for row in known.values()}
        return [
            replace(vm, real=changes[vm.uuid][1] if vm.uuid in changes else vm.real, worker=_of(workers, vm))
            for vm in vms
        ]


def _of(workers: Mapping[str, Worker], vm: VM) -> Worker | None:
    return workers.get(vm.assumed.worker) if vm.assumed.worker else None


def _write_worker(row: WorkerRow, reply: ListReply, own: Collection[str], asked_at: datetime) -> None:
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
    row.problem = "it was fenced, and yet it answers: what it has is a second copy of VMs" if row.fenced_at else None
