"""The history of each VM: the writer of a fact adds an event in the same transaction.

Bounded by age and per VM. The ids also number the event stream: a reader names the last one that it has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.engine import Database, database_method
from master_service.db.tables import HistoryRow
from master_service.planning.status import MasterStatus, master_status
from master_service.planning.vm import VM, DesiredState
from master_service.policy.history_sentences import Fact
from worker_service.contract import HaltCause, Status

_MESSAGE_LIMIT: Final = 500
_OVERLAP: Final = 100
"""Ids are assigned before the commit: one may become visible after a greater one. Sending twice does no harm."""
_READ_AT_ONCE: Final = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEntry:
    """One change of one fact about a VM. `actor`: the user or daemon that changed it, or the worker.

    `cause`: why the VM halted, or why the master did this by itself. `status`: the VM's, right after the change; empty
    for entries of version 0.2.
    """

    id: int
    uuid: str
    at: datetime
    fact: Fact
    actor: str
    before: str
    after: str
    message: str
    cause: str
    status: str
    generation: int


def record_desired_change(  # noqa: PLR0913, PLR0917 - what an entry says
    session: AsyncSession, before: DesiredState | None, vm: VM, verb: str, actor: str, at: datetime, cause: str = ""
) -> None:
    """Add the event of a changed desired state. `vm`: after the change."""
    change = (before.status.value if before else "", vm.desired.status.value)
    status = master_status(vm)
    _add(session, vm.uuid, at, "desired", actor, change, verb, vm.desired.generation, cause=cause, status=status)


def record_dispatch(  # noqa: PLR0913, PLR0917 - as above
    session: AsyncSession, worker: str | None, vm: VM, message: str, at: datetime, cause: str = ""
) -> None:
    """Add the event of a command that was sent, or answered. `vm`: with the bookkeeping after that."""
    verb, generation = vm.dispatch.verb or "", vm.dispatch.generation
    status = master_status(vm)
    _add(session, vm.uuid, at, "dispatch", worker or "", ("", verb), message, generation, cause=cause, status=status)


def record_observed(session: AsyncSession, before: VM, after: VM, at: datetime) -> None:
    """Add the event of a report, if its status, or the cause of its halt, differs from the one before."""
    was, is_now = _status_word(before), _status_word(after)
    cause = _halt_cause(after)
    if was == is_now and cause == _halt_cause(before):
        return
    observed, actor = after.observed, after.desired.worker or ""
    message = observed.status.message if observed.status and observed.tombstone is None else ""
    status = master_status(after)
    _add(
        session, after.uuid, at, "observed", actor, (was, is_now), message, observed.generation,
        cause=cause.value if cause else "", status=status,
    )  # fmt: skip


class HistoryStore:
    """Reader of the history, and its retention."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.overlap: Final = _OVERLAP if database.conninfo else 0
        """How far an event may come after one with a greater id. SQLite writes one transaction at a time."""

    @database_method
    async def of(self, uuid: str, before: int | None, limit: int) -> list[HistoryEntry]:
        """Return events of one VM, newest first; `before`: only those with a smaller id."""
        query = select(HistoryRow).where(HistoryRow.uuid == uuid).order_by(col(HistoryRow.id).desc()).limit(limit)
        if before is not None:
            query = query.where(col(HistoryRow.id) < before)
        async with self._database.read() as session:
            return [_entry(row) for row in await session.exec(query)]

    @database_method
    async def newer(self, than: int, limit: int) -> list[HistoryEntry]:
        """Return events of all VMs with ids above `than`, the oldest first."""
        query = select(HistoryRow).where(col(HistoryRow.id) > than).order_by(col(HistoryRow.id)).limit(limit)
        async with self._database.read() as session:
            return [_entry(row) for row in await session.exec(query)]

    @database_method
    async def last(self) -> int:
        """Return the id of the newest event; 0: there are no events."""
        async with self._database.read() as session:
            return (await session.exec(select(func.max(HistoryRow.id)))).one() or 0

    @database_method
    async def since(self, last: int, limit: int) -> Collection[str] | None:
        """Return the VMs with events from about `last` on, or None if too many or deleted already."""
        query = select(HistoryRow.uuid).where(col(HistoryRow.id) > last - _OVERLAP).distinct().limit(limit + 1)
        async with self._database.read() as session:
            oldest = (await session.exec(select(func.min(HistoryRow.id)))).one()
            newest = (await session.exec(select(func.max(HistoryRow.id)))).one() or 0
            if last > newest or (last and oldest is not None and last < oldest - 1):
                return None
            found = (await session.exec(query)).all()
        return found if len(found) <= limit else None

    @database_method
    async def prune(self, older_than: datetime, keep_each: int) -> int:
        """Delete events that are too old, or beyond the newest `keep_each` of their VM; return how many."""
        number = func.row_number().over(partition_by=HistoryRow.uuid, order_by=col(HistoryRow.id).desc())
        ranked = select(HistoryRow.id, number.label("number")).subquery()
        many = select(ranked.c.id).where(ranked.c.number > keep_each)
        async with self._database.write() as session:
            old = await session.exec(delete(HistoryRow).where(col(HistoryRow.at) < older_than))
            surplus = await session.exec(delete(HistoryRow).where(col(HistoryRow.id).in_(many)))
            return int(old.rowcount + surplus.rowcount)


class HistoryReader:
    """Reads new events of all VMs, each once, although one may become visible after one with a greater id.

    `last`: the greatest id that was read. On PostgreSQL a reader that goes on after a break gets some events again that
    its predecessor had.
    """

    def __init__(self, history: HistoryStore, last: int) -> None:
        self._history = history
        self._known: set[int] = set()
        self.last = last

    @classmethod
    async def from_now(cls, history: HistoryStore) -> HistoryReader:
        """Return a reader of the events from now on."""
        reader = cls(history, await history.last())
        await reader.read()
        return reader

    async def read(self) -> list[HistoryEntry]:
        """Return the new events, the oldest first."""
        found: list[HistoryEntry] = []
        position = self.last - self._history.overlap
        while entries := await self._history.newer(position, _READ_AT_ONCE):
            found += [entry for entry in entries if entry.id not in self._known]
            position = entries[-1].id
        self._known.update(entry.id for entry in found)
        self.last = max([self.last, *self._known])
        self._known = {each for each in self._known if each > self.last - self._history.overlap}
        return found


def _add(  # noqa: PLR0913, PLR0917 - as above
    session: AsyncSession,
    uuid: str,
    at: datetime,
    fact: Fact,
    actor: str,
    change: tuple[str, str],
    message: str,
    generation: int,
    *,
    cause: str,
    status: MasterStatus,
) -> None:
    before, after = change
    session.add(
        HistoryRow(
            uuid=uuid,
            at=at,
            fact=fact,
            actor=actor,
            before=before,
            after=after,
            message=message[:_MESSAGE_LIMIT],
            generation=generation,
            cause=cause[:_MESSAGE_LIMIT],
            status=status.value,
        )
    )


def _status_word(vm: VM) -> str:
    if vm.observed.tombstone is not None:
        return "destroyed"
    return vm.observed.status.status.value if vm.observed.status else ""


def _halt_cause(vm: VM) -> HaltCause | None:
    status = vm.observed.status
    halted = status is not None and status.status is Status.HALTED and vm.observed.tombstone is None
    return status.halt_cause if status and halted else None


def _entry(row: HistoryRow) -> HistoryEntry:
    fact: Fact = row.fact  # type: ignore[assignment]
    return HistoryEntry(
        id=row.id or 0,
        uuid=row.uuid,
        at=row.at,
        fact=fact,
        actor=row.actor,
        before=row.before,
        after=row.after,
        message=row.message,
        cause=row.cause,
        status=row.status,
        generation=row.generation,
    )
