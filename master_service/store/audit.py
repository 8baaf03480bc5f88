"""The audit, kept: each line is written in the transaction of what it tells of."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import delete, or_, true, update
from sqlalchemy import select as select_columns
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.engine import Database, database_method
from master_service.db.tables import AccountRow, AuditRow, DispatchRow, VMachineRow
from master_service.planning.observed import last_reported_status
from master_service.planning.outcomes import ONE_SHOT_VERB, OPEN_OUTCOMES, OpenOperation, Outcome, resolve_outcomes
from master_service.planning.vm import VM
from master_service.policy.audit import EXTERNAL_INTERFACES, AuditEntry, AuditRecord
from master_service.store.mapping import lock

_OPEN: Final = [outcome.value for outcome in OPEN_OUTCOMES]
_OURS: Final = col(AuditRow.interface).not_in(EXTERNAL_INTERFACES)
_PUSHED: Final = col(AuditRow.verb) != ONE_SHOT_VERB
"""Of these the pusher tells the workers."""

_DETAIL: Final = 300


def add_entry(session: AsyncSession, entry: AuditEntry) -> AuditRow:
    """Add a line to this transaction."""
    row = AuditRow(
        at=entry.at,
        actor=entry.actor.name,
        interface=entry.actor.interface,
        verb=entry.verb,
        kind=entry.kind,
        uuid=entry.uuid,
        name=entry.target,
        generation=entry.generation,
        outcome=entry.outcome.value,
        detail=entry.detail,
        jid=entry.jid,
        request_id=entry.actor.request_id,
        address=entry.actor.address,
    )
    session.add(row)
    return row


async def mark_sent(session: AsyncSession, uuids: Collection[str], jid: str) -> None:
    """Note the Salt job that carries what was asked of these VMs."""
    await lock(session, col(VMachineRow.uuid).in_(uuids))  # as everybody who changes lines about VMs
    about = (col(AuditRow.uuid).in_(uuids), _PUSHED)
    asked = (*about, col(AuditRow.outcome) == Outcome.QUEUED.value)
    await session.exec(update(AuditRow).where(*asked).values(outcome=Outcome.SENT.value, jid=jid))
    # A fast worker has answered already, or is seen to have done it: then only the job is still to be named.
    newest = select(DispatchRow.generation).where(col(DispatchRow.uuid) == col(AuditRow.uuid)).scalar_subquery()
    known = [Outcome.ACCEPTED.value, Outcome.DONE.value, Outcome.FAILED.value, Outcome.REFUSED.value]
    ahead = (*about, col(AuditRow.jid) == "", col(AuditRow.outcome).in_(known), col(AuditRow.generation) == newest)
    await session.exec(update(AuditRow).where(*ahead).values(jid=jid))


async def mark_answered(session: AsyncSession, uuid: str, generation: int, refused: str | None) -> None:
    """Note what a worker said to what was asked of a VM up to this generation; `refused`: why it refused it.

    What it refuses now it may take when it is told once more.
    """
    outcome = Outcome.ACCEPTED if refused is None else Outcome.REFUSED
    open_ones = [Outcome.QUEUED.value, Outcome.SENT.value, Outcome.REFUSED.value]
    asked = (col(AuditRow.uuid) == uuid, col(AuditRow.generation) <= generation, _PUSHED)
    of = (*asked, col(AuditRow.outcome).in_(open_ones))
    await session.exec(update(AuditRow).where(*of).values(outcome=outcome.value, detail=refused or ""))
    if refused is None:
        at_once = (col(AuditRow.outcome) == Outcome.ACCEPTED.value, col(AuditRow.verb) == "modify")
        await session.exec(
            update(AuditRow).where(col(AuditRow.uuid) == uuid, *at_once).values(outcome=Outcome.DONE.value)
        )


async def mark_one_shot_answered(session: AsyncSession, uuid: str, jid: str, refused: str | None) -> None:
    """Note what a worker said to the job that told it of something once. It may say so before the job is noted."""
    outcome = Outcome.ACCEPTED if refused is None else Outcome.REFUSED
    told = (col(AuditRow.jid).in_(["", jid]), col(AuditRow.outcome).in_([Outcome.QUEUED.value, Outcome.SENT.value]))
    of = (col(AuditRow.uuid) == uuid, col(AuditRow.verb) == ONE_SHOT_VERB, *told)
    values = {"outcome": outcome.value, "detail": (refused or "")[:_DETAIL]}
    await session.exec(update(AuditRow).where(*of).values(**values))


async def mark_observed(session: AsyncSession, vms: Collection[VM]) -> None:
    """Note what became of open lines, by what was reported of these VMs. Their rows are locked already."""
    if not vms:
        return
    waiting = (col(AuditRow.kind) == "vm", _OURS, col(AuditRow.outcome).in_(_OPEN))
    columns: tuple[Any, ...] = (AuditRow.uuid, AuditRow.id, AuditRow.verb, AuditRow.generation, AuditRow.at)
    query = select_columns(*columns).where(*waiting)
    if len(vms) == 1:
        query = query.where(col(AuditRow.uuid) == next(iter(vms)).uuid)
    lines: dict[str, list[OpenOperation]] = {}
    for uuid, *line in await (await session.connection()).execute(query):
        lines.setdefault(uuid, []).append(OpenOperation(*line))
    for vm in vms:
        if vm.uuid in lines:
            status = vm.observed.status
            found = resolve_outcomes(
                lines[vm.uuid], last_reported_status(vm), vm.observed.generation, vm.observed.since
            )
            for number, outcome in found.items():
                detail = status.message[:_DETAIL] if status and outcome is Outcome.FAILED else ""
                values = {"outcome": outcome.value, "detail": detail}
                await session.exec(update(AuditRow).where(col(AuditRow.id) == number).values(**values))


async def mark_superseded(session: AsyncSession, uuid: str) -> None:
    """Note that what no worker was told yet is not wanted any more."""
    of = (col(AuditRow.uuid) == uuid, col(AuditRow.outcome) == Outcome.QUEUED.value, _PUSHED)
    await session.exec(update(AuditRow).where(*of).values(outcome=Outcome.SUPERSEDED.value))


async def mark_destroyed(session: AsyncSession, uuid: str) -> None:
    """Note that a VM is destroyed: so that was done, and nothing else will be."""
    of = (col(AuditRow.uuid) == uuid, col(AuditRow.outcome).in_(_OPEN))
    for outcome, verb in ((Outcome.DONE, col(AuditRow.verb) == "destroy"), (Outcome.SUPERSEDED, true())):
        await session.exec(update(AuditRow).where(*of, verb).values(outcome=outcome.value))


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Which lines to show; None: all. `vm`: a uuid, or a name. `before`: the id of the last one seen."""

    actor: str | None = None
    interface: str | None = None
    verb: str | None = None
    kind: str | None = None
    outcome: str | None = None
    vm: str | None = None
    since: datetime | None = None
    before: int | None = None


class AuditStore:
    """What was done, and what was refused."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def add(self, *entries: AuditEntry) -> None:
        """Add lines about what changed nothing else here, such as a refusal."""
        async with self._database.write() as session:
            for entry in entries:
                add_entry(session, entry)

    @database_method
    async def handed(self, id_: int, jid: str) -> None:
        """Note the Salt job that carries what a line tells of. Its worker may have answered already."""
        line = col(AuditRow.id) == id_
        async with self._database.write() as session:
            await session.exec(update(AuditRow).where(line).values(jid=jid))
            asked = (line, col(AuditRow.outcome) == Outcome.QUEUED.value)
            await session.exec(update(AuditRow).where(*asked).values(outcome=Outcome.SENT.value))

    @database_method
    async def refused(self, id_: int, why: str) -> None:
        """Note that what a line tells of was refused before any worker was told."""
        values = {"outcome": Outcome.REFUSED.value, "detail": why[:_DETAIL]}
        async with self._database.write() as session:
            await session.exec(update(AuditRow).where(col(AuditRow.id) == id_).values(**values))

    @database_method
    async def returned(self, jid: str, on: str, verb: str, refused: str | None) -> None:
        """Note what a job past this master came to on one minion. `on`: the detail of its line."""
        sent = (col(AuditRow.outcome) == Outcome.SENT.value, col(AuditRow.interface) == "salt")
        of = (*sent, col(AuditRow.jid) == jid, col(AuditRow.verb) == verb, col(AuditRow.detail) == on)
        async with self._database.read() as session:  # mostly it is a job of our own
            if (await session.exec(select(AuditRow.id).where(*of).limit(1))).first() is None:
                return
        outcome = Outcome.DONE if refused is None else Outcome.REFUSED
        values = {"outcome": outcome.value, "detail": on if refused is None else f"{on}: {refused}"[:_DETAIL]}
        async with self._database.write() as session:
            await session.exec(update(AuditRow).where(*of).values(**values))

    @database_method
    async def newest(self, uuid: str, verb: str) -> AuditRecord | None:
        """The newest line about this verb and VM."""
        query = select(AuditRow).where(AuditRow.uuid == uuid, AuditRow.verb == verb).order_by(col(AuditRow.id).desc())
        async with self._database.read() as session:
            row = (await session.exec(query.limit(1))).first()
        return _line(row) if row else None

    @database_method
    async def lines(self, search: Search, only: str | None, limit: int) -> list[AuditRecord]:
        """Lines, the newest first. `only`: those of this user alone, since their account was made."""
        query = select(AuditRow).order_by(col(AuditRow.id).desc()).limit(limit)
        for name in ("actor", "interface", "verb", "kind", "outcome"):
            if (value := getattr(search, name)) is not None:
                query = query.where(getattr(AuditRow, name) == value)
        if search.vm is not None:
            query = query.where(or_(col(AuditRow.uuid) == search.vm, col(AuditRow.name) == search.vm))
        if search.since is not None:
            query = query.where(col(AuditRow.at) >= search.since)
        if search.before is not None:
            query = query.where(col(AuditRow.id) < search.before)
        async with self._database.read() as session:
            if only is not None:
                account = await session.get(AccountRow, only)
                query = query.where(AuditRow.actor == only)
                # Somebody else may have had the name before.
                query = query.where(col(AuditRow.at) >= account.created_at) if account else query
            return [_line(row) for row in await session.exec(query)]

    @database_method
    async def of_vms(self, owner: str | None, vm: str | None, before: int | None, limit: int) -> list[AuditRecord]:
        """What was asked of VMs, the newest first. `owner`: of their VMs alone; `vm`: a uuid, or a name."""
        query = _OF_VMS.order_by(col(AuditRow.id).desc()).limit(limit)
        if owner is not None:
            query = query.where(VMachineRow.owner == owner)
        if vm is not None:
            query = query.where(or_(col(AuditRow.uuid) == vm, col(AuditRow.name) == vm))
        if before is not None:
            query = query.where(col(AuditRow.id) < before)
        async with self._database.read() as session:
            return [_line(row) for row in await session.exec(query)]

    @database_method
    async def of_vm(self, id_: int) -> AuditRecord | None:
        """One line about a VM that is known."""
        async with self._database.read() as session:
            row = (await session.exec(_OF_VMS.where(AuditRow.id == id_))).first()
        return _line(row) if row else None

    @database_method
    async def prune(self, older_than: datetime) -> int:
        """Forget old lines; how many."""
        async with self._database.write() as session:
            result = await session.exec(delete(AuditRow).where(col(AuditRow.at) < older_than))
            return int(result.rowcount)


_OF_VMS = (
    select(AuditRow)
    .join(VMachineRow, col(VMachineRow.uuid) == col(AuditRow.uuid))
    .where(AuditRow.kind == "vm", AuditRow.outcome != Outcome.DENIED.value, _OURS)
)


def _line(row: AuditRow) -> AuditRecord:
    return AuditRecord(
        id=row.id or 0,
        at=row.at,
        actor=row.actor,
        interface=row.interface,
        verb=row.verb,
        kind=row.kind,
        uuid=row.uuid,
        name=row.name,
        generation=row.generation,
        outcome=row.outcome,
        detail=row.detail,
        jid=row.jid,
        request_id=row.request_id,
        address=row.address,
    )
