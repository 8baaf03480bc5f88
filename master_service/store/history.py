"""The history of each VM: the writer of a fact adds an event in the same transaction.

Bounded by age and per VM. The ids also number the event stream: a reader names the last one that it has.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from sqlalchemy import delete, func
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.engine import Database, database_method
from master_service.db.tables import HistoryRow
from master_service.planning.vm import DesiredState, DispatchState, ObservedState

Fact = Literal["desired", "dispatch", "observed"]
_MESSAGE_LIMIT: Final = 500
_OVERLAP: Final = 100
"""Ids are assigned before the commit: one may become visible after a greater one. Sending twice does no harm."""


@dataclass(frozen=True, kw_only=True, slots=True)
class HistoryEntry:
    """One change of one fact about a VM. `actor`: the user or daemon that changed it, or the worker."""

    id: int
    at: datetime
    fact: Fact
    actor: str
    before: str
    after: str
    message: str
    generation: int


def record_desired_change(  # noqa: PLR0913, PLR0917 - what an entry says
    session: AsyncSession, before: DesiredState | None, after: DesiredState, verb: str, actor: str, at: datetime
) -> None:
    """Add the event of a changed desired state."""
    was = before.status.value if before else ""
    _add(session, after.uuid, at, "desired", actor, (was, after.status.value), verb, after.generation)


def record_dispatch(  # noqa: PLR0913, PLR0917 - as above
    session: AsyncSession, uuid: str, worker: str | None, dispatch: DispatchState, message: str, at: datetime
) -> None:
    """Add the event of a command that was sent, or answered. `dispatch`: the bookkeeping after that."""
    _add(session, uuid, at, "dispatch", worker or "", ("", dispatch.verb or ""), message, dispatch.generation)


def record_observed(  # noqa: PLR0913, PLR0917 - as above
    session: AsyncSession, uuid: str, worker: str | None, before: ObservedState, after: ObservedState, at: datetime
) -> None:
    """Add the event of a report, if its status differs from the one before."""
    was, is_now = _status_word(before), _status_word(after)
    if was != is_now:
        message = after.status.message if after.status and after.tombstone is None else ""
        _add(session, uuid, at, "observed", worker or "", (was, is_now), message, after.generation)


class HistoryStore:
    """Reader of the history, and its retention."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def of(self, uuid: str, before: int | None, limit: int) -> list[HistoryEntry]:
        """Return events of one VM, newest first; `before`: only those with a smaller id."""
        query = select(HistoryRow).where(HistoryRow.uuid == uuid).order_by(col(HistoryRow.id).desc()).limit(limit)
        if before is not None:
            query = query.where(col(HistoryRow.id) < before)
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


def _add(  # noqa: PLR0913, PLR0917 - as above
    session: AsyncSession,
    uuid: str,
    at: datetime,
    fact: Fact,
    actor: str,
    change: tuple[str, str],
    message: str,
    generation: int,
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
        )
    )


def _status_word(observed: ObservedState) -> str:
    if observed.tombstone is not None:
        return "destroyed"
    return observed.status.status.value if observed.status else ""


def _entry(row: HistoryRow) -> HistoryEntry:
    fact: Fact = row.fact  # type: ignore[assignment]
    return HistoryEntry(
        id=row.id or 0,
        at=row.at,
        fact=fact,
        actor=row.actor,
        before=row.before,
        after=row.after,
        message=row.message,
        generation=row.generation,
    )
