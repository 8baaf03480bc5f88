"""The audit: append-only entries, each written in the transaction of the act that it is about.

The entry about a requested change keeps the outcome at that time. Readers see the outcome of its operation.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import and_, delete, func, or_
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.db.engine import Database, database_method
from master_service.db.tables import AuditRow, OperationRow
from master_service.policy.audit import AuditEntry, AuditRecord
from master_service.store.mapping import audit_record


def add_entry(session: AsyncSession, entry: AuditEntry) -> AuditRow:
    """Add an entry to this transaction, with its operation if it requests a change."""
    row = AuditRow(
        at=entry.at,
        actor=entry.actor.name,
        actor_id=entry.actor.account_id,
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
    if entry.is_operation:
        operation = OperationRow(
            entry=row,
            uuid=entry.uuid,
            verb=entry.verb,
            generation=entry.generation,
            actor=entry.actor.name,
            actor_id=entry.actor.account_id,
            interface=entry.actor.interface,
            requested_at=entry.at,
            outcome=entry.outcome.value,
            detail=entry.detail,
            jid=entry.jid,
        )
        session.add(operation)
    return row


@dataclass(frozen=True, kw_only=True, slots=True)
class Search:
    """Which entries to return; a field that is None selects all.

    `vm`: a uuid, or a name. `before`: the id of the last entry of a page.
    """

    actor: str | None = None
    interface: str | None = None
    verb: str | None = None
    kind: str | None = None
    outcome: str | None = None
    vm: str | None = None
    since: datetime | None = None
    before: int | None = None


class AuditStore:
    """Writer and reader of the audit."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def add(self, *entries: AuditEntry) -> None:
        """Add entries about acts that change nothing else in this database, such as a refusal."""
        async with self._database.write() as session:
            for entry in entries:
                add_entry(session, entry)

    @database_method
    async def page(self, search: Search, only: str | None, limit: int) -> list[AuditRecord]:
        """Return entries, newest first. `only`: those of the account with this id alone."""
        query = (
            select(AuditRow, OperationRow)
            .outerjoin(OperationRow, col(OperationRow.id) == col(AuditRow.id))
            .order_by(col(AuditRow.id).desc())
            .limit(limit)
        )
        for name in ("interface", "verb", "kind"):
            if (value := getattr(search, name)) is not None:
                query = query.where(getattr(AuditRow, name) == value)
        if search.actor is not None:
            query = query.where(search.actor == _ACTOR)
        if search.outcome is not None:
            query = query.where(search.outcome == _OUTCOME)
        if search.vm is not None:
            query = query.where(or_(col(AuditRow.uuid) == search.vm, col(AuditRow.name) == search.vm))
        if search.since is not None:
            query = query.where(col(AuditRow.at) >= search.since)
        if search.before is not None:
            query = query.where(col(AuditRow.id) < search.before)
        if only is not None:
            query = query.where(only == _ACTOR_ID)
        async with self._database.read() as session:
            return [audit_record(*found) for found in await session.exec(query)]

    @database_method
    async def newest_actors(
        self, kind: str, acts: Sequence[tuple[str, str]], targets: Collection[str]
    ) -> dict[str, str]:
        """Return the actor of the newest of these acts on each target. An act is a verb, and how its detail begins."""
        of_acts = or_(
            *(and_(col(AuditRow.verb) == verb, col(AuditRow.detail).startswith(begin)) for verb, begin in acts)
        )
        query = (
            select(AuditRow.name, AuditRow.actor)
            .where(AuditRow.kind == kind, AuditRow.outcome == "done", col(AuditRow.name).in_(targets), of_acts)
            .order_by(col(AuditRow.id))
        )
        async with self._database.read() as session:
            return {target: actor for target, actor in await session.exec(query) if target}

    @database_method
    async def prune(self, older_than: datetime) -> int:
        """Delete old entries with their operations; return how many."""
        async with self._database.write() as session:
            result = await session.exec(delete(AuditRow).where(col(AuditRow.at) < older_than))
            return int(result.rowcount)


_ACTOR: Any = func.coalesce(OperationRow.actor, AuditRow.actor)
_ACTOR_ID: Any = func.coalesce(OperationRow.actor_id, AuditRow.actor_id)
_OUTCOME: Any = func.coalesce(OperationRow.outcome, AuditRow.outcome)
