"""Who may ask for things. Tokens are kept as their SHA-256 only."""

from __future__ import annotations

import hashlib
from datetime import datetime

from sqlalchemy import delete
from sqlmodel import col, select

from master_service.database import Database, uninterrupted
from master_service.models import AccountRow, TokenRow


class People:
    """Users and their tokens."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @uninterrupted
    async def ensure_admin(self, token: str, now: datetime, name: str = "admin") -> None:
        """Make sure that the administrator exists, with this token from the settings and no older one from there."""
        digest = _digest(token)
        async with self._database.write() as session:
            if await session.get(AccountRow, name) is None:
                session.add(AccountRow(name=name, role="admin", created_at=now))
                await session.flush()
            settings = col(TokenRow.label) == "settings"
            await session.exec(
                delete(TokenRow).where(col(TokenRow.user) == name, settings, col(TokenRow.sha256) != digest)
            )
            if await session.get(TokenRow, digest) is None:
                session.add(TokenRow(sha256=digest, user=name, label="settings", created_at=now))

    @uninterrupted
    async def owner_of(self, token: str) -> str | None:
        """The user who has this token; None: nobody."""
        async with self._database.read() as session:
            query = select(TokenRow.user).where(TokenRow.sha256 == _digest(token))
            return (await session.exec(query)).first()


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
