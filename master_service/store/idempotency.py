"""Answers to requests that may be sent again: one for each account and `Idempotency-Key`. Holds no secrets."""

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
    """A stored answer. `fingerprint`: of the request; `status` is None while the request is in progress."""

    fingerprint: str
    status: int | None = None
    headers: dict[str, str]
    body: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class IdempotencyTtl:
    """How long an answer is kept, and how long a request may be in progress."""

    answer: timedelta
    request: timedelta


class IdempotencyStore:
    """Writer and reader of stored answers."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def reserve(
        self, account_id: str, key: str, fingerprint: str, now: datetime, ttl: IdempotencyTtl
    ) -> Reply | None:
        """Reserve the key for a request that begins now, or return its earlier answer. Deletes old answers."""
        try:
            async with self._database.write() as session:
                await session.exec(delete(IdempotencyRow).where(col(IdempotencyRow.at) < now - ttl.answer))
                row = await session.get(IdempotencyRow, (account_id, key), with_for_update=True)
                if row is None:
                    session.add(IdempotencyRow(account_id=account_id, key=key, fingerprint=fingerprint, at=now))
                elif row.status is None and row.fingerprint == fingerprint and row.at < now - ttl.request:
                    row.at = now
                else:
                    return _reply(row)
                return None
        except IntegrityError:  # PostgreSQL, if the same key came twice at once: now it exists
            return await self.reserve(account_id, key, fingerprint, now, ttl)

    @database_method
    async def find(self, account_id: str, key: str) -> Reply | None:
        """Return the answer of a key, or None if the key is not reserved."""
        async with self._database.read() as session:
            row = await session.get(IdempotencyRow, (account_id, key))
        return _reply(row) if row else None

    @database_method
    async def keep(self, account_id: str, key: str, reply: Reply) -> None:
        """Store the answer to a request that has reserved its key."""
        values = {"status": reply.status, "headers": reply.headers, "body": reply.body}
        async with self._database.write() as session:
            await session.exec(
                update(IdempotencyRow)
                .where(col(IdempotencyRow.account_id) == account_id, col(IdempotencyRow.key) == key)
                .values(**values)
            )

    @database_method
    async def release(self, account_id: str, key: str) -> None:
        """Release the key of a request that changed nothing: it may be sent again with the same key."""
        async with self._database.write() as session:
            await session.exec(
                delete(IdempotencyRow).where(
                    col(IdempotencyRow.account_id) == account_id, col(IdempotencyRow.key) == key
                )
            )


def _reply(row: IdempotencyRow) -> Reply:
    return Reply(fingerprint=row.fingerprint, status=row.status, headers=row.headers, body=row.body)
