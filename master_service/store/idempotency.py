"""Answers kept for requests that may be sent again: one per user and `Idempotency-Key`. Holds no secrets."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import delete, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col

from master_service.db.engine import Database, database_method
from master_service.db.tables import IdempotencyRow


@dataclass(frozen=True, kw_only=True, slots=True)
class Reply:
    """What was answered. `fingerprint`: of the request; `status`: None while that is still being worked on."""

    fingerprint: str
    status: int | None = None
    headers: dict[str, str]
    body: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyTtl:
    """How long an answer is kept, and how long a request may take: one without an answer is going on no longer."""

    answer: timedelta
    request: timedelta


class IdempotencyStore:
    """Answers kept."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def reserve(
        self, user: str, key: str, fingerprint: str, now: datetime, lives: IdempotencyTtl
    ) -> Reply | None:
        """Take the key for a request that begins now: None; or what the key was taken for before. Forgets old ones."""
        try:
            async with self._database.write() as session:
                await session.exec(delete(IdempotencyRow).where(col(IdempotencyRow.at) < now - lives.answer))
                row = await session.get(IdempotencyRow, (user, key), with_for_update=True)
                if row is None:
                    session.add(IdempotencyRow(user=user, key=key, fingerprint=fingerprint, at=now))
                elif row.status is None and row.fingerprint == fingerprint and row.at < now - lives.request:
                    row.at = now
                else:
                    return _reply(row)
                return None
        except IntegrityError:  # PostgreSQL, when the same came twice at once: now it is there
            return await self.reserve(user, key, fingerprint, now, lives)

    @database_method
    async def find(self, user: str, key: str) -> Reply | None:
        """What the key was taken for; None: it was not."""
        async with self._database.read() as session:
            row = await session.get(IdempotencyRow, (user, key))
        return _reply(row) if row else None

    @database_method
    async def keep(self, user: str, key: str, reply: Reply) -> None:
        """Keep the answer to a request that had reserved its key."""
        values = {"status": reply.status, "headers": reply.headers, "body": reply.body}
        async with self._database.write() as session:
            await session.exec(
                update(IdempotencyRow)
                .where(col(IdempotencyRow.user) == user, col(IdempotencyRow.key) == key)
                .values(**values)
            )

    @database_method
    async def release(self, user: str, key: str) -> None:
        """Forget a key whose request changed nothing: it may be tried again with it."""
        async with self._database.write() as session:
            await session.exec(
                delete(IdempotencyRow).where(col(IdempotencyRow.user) == user, col(IdempotencyRow.key) == key)
            )


def _reply(row: IdempotencyRow) -> Reply:
    return Reply(fingerprint=row.fingerprint, status=row.status, headers=row.headers, body=row.body)
