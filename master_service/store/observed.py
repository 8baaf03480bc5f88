"""What workers report: the only writer of real facts and of workers. A minion writes only VMs assigned to it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

import msgspec
from sqlalchemy import and_
from sqlmodel import col, select

from master_service.core.settings import Settings
from master_service.db.engine import Database, notify_on_commit, shield_from_cancellation
from master_service.db.fencing import FencingToken
from master_service.db.tables import ObservedRow, VMachineRow, WorkerRow
from master_service.planning.vm import VM, ObservedState, Worker, apply_event, apply_poll
from master_service.policy import incidents
from master_service.store import audit
from master_service.store.history import record_observed
from master_service.store.mapping import (
    load_for_change,
    load_vms,
    lock,
    observed_columns,
    upsert,
    worker_of,
    write_observed,
)
from master_service.store.notices import raise_all
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


class ObservedStore:
    """What workers report."""

    def __init__(self, database: Database, term: FencingToken, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._settings = settings

    @shield_from_cancellation
    async def status(self, minion: str, status: VMStatus, now: datetime) -> bool:
        """Keep a status told by an event; return whether it was news about a VM of that minion."""
        async with self._database.write() as session:
            await self._term.check(session)
            vm = (await load_for_change(session, [status.uuid])).get(status.uuid)
            if vm is None or (real := apply_event(vm, minion, status, now)) is None:
                return False
            await upsert(session, ObservedRow, vm.uuid, observed_columns(real))
            record_observed(session, vm.uuid, minion, vm.observed, real, now)
            incident = incidents.incident_from_report(vm, real, now, self._settings)
            await raise_all(session, [incident] if incident else [], now)
            await audit.mark_observed(session, [replace(vm, observed=real)])
            notify_on_commit(session, [vm.uuid])
            return True

    @shield_from_cancellation
    async def buried(self, minion: str, uuid: str, generation: int, now: datetime) -> bool:
        """Keep a worker's word that it destroyed a VM of its own at `generation`."""
        async with self._database.write() as session:
            await self._term.check(session)
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None or vm.desired.worker != minion:
                return False
            real = vm.observed.mark_destroyed(generation, now)
            await upsert(session, ObservedRow, uuid, observed_columns(real))
            record_observed(session, uuid, minion, vm.observed, real, now)
            await audit.mark_observed(session, [replace(vm, observed=real)])
            notify_on_commit(session, [uuid])
            return True

    @shield_from_cancellation
    async def answered_once(self, minion: str, answers: Mapping[str, str | None], jid: str) -> None:
        """Keep by uuid a worker's word on what it was told once, by this job: None, or why it refused that."""
        async with self._database.write() as session:
            await self._term.check(session)
            for uuid, vm in (await load_for_change(session, list(answers))).items():
                if vm.desired.worker == minion:
                    await audit.mark_one_shot_answered(session, uuid, jid, answers[uuid])
                    notify_on_commit(session, [uuid])

    @shield_from_cancellation
    async def poll(self, poll: Poll) -> list[VM]:
        """Keep the outcome of a poll: VMs, missing VMs, tombstones, capacities, strangers, silent workers.

        A worker's answer to one poll counts once, however often it is given. Returns all VMs that are not destroyed as
        they are known now, whether or not their workers answered; of a poll that is not complete, those of its workers.
        """
        async with self._database.write() as session:
            await self._term.check(session)
            alive = col(VMachineRow.destroyed_at).is_(None)
            of_these = and_(col(VMachineRow.worker).in_(poll.replies), alive)
            await lock(session, of_these)
            vms = await load_vms(session, alive if poll.complete else of_these)
            known = {row.id: row for row in await session.exec(select(WorkerRow))}
            new = {
                minion: reply
                for minion, reply in poll.replies.items()
                if minion not in known or known[minion].seen_at != poll.asked_at
            }
            own: dict[str, set[str]] = {}
            found: list[incidents.Incident] = []
            changes: dict[str, tuple[ObservedState, ObservedState]] = {}
            silent: dict[str, list[VM]] = {}
            for vm in vms:
                minion = vm.desired.worker or ""
                if minion not in poll.replies:
                    silent.setdefault(minion, []).append(vm)
                if minion in new:
                    own.setdefault(minion, set()).add(vm.uuid)
                    real = apply_poll(vm, new[minion], poll.asked_at)
                    if real != vm.observed:
                        changes[vm.uuid] = vm.observed, real
                        record_observed(session, vm.uuid, minion, vm.observed, real, poll.asked_at)
                        if incident := incidents.incident_from_report(vm, real, poll.asked_at, self._settings):
                            found.append(incident)
            await write_observed(session, changes)
            notify_on_commit(session, changes)
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
                    found += incidents.worker_incidents(minion, row.unreachable_since, silent.get(minion, ()))
            await raise_all(session, found, poll.asked_at)
            await audit.mark_observed(
                session, [replace(vm, observed=changes[vm.uuid][1]) for vm in vms if vm.uuid in changes]
            )
            workers = {row.id: worker_of(row) for row in known.values()}
        return [
            replace(vm, observed=changes[vm.uuid][1] if vm.uuid in changes else vm.observed, worker=_of(workers, vm))
            for vm in vms
        ]


def _of(workers: Mapping[str, Worker], vm: VM) -> Worker | None:
    return workers.get(vm.desired.worker) if vm.desired.worker else None


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
    row.unassigned_vms = [msgspec.to_builtins(s) for s in strangers]
    row.problem = "it was fenced, and yet it answers: what it has is a second copy of VMs" if row.fenced_at else None
