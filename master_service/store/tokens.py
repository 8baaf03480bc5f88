"""Tokens and logins: the only writer of both. Only the digest of a token is stored."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import Conflict, NotFound
from master_service.db.engine import Database, database_method
from master_service.db.tables import AccountRow, TokenRow
from master_service.policy.accounts import TOUCH_S, NewToken, Token, TokenKind, digest
from master_service.policy.audit import Actor, AuditEntry
from master_service.policy.permissions import Role, Scope
from master_service.store.audit import add_entry
from master_service.store.mapping import lock_account


@dataclass(frozen=True, kw_only=True, slots=True)
class Bearer:
    """The account and token behind a request. `fault`: why the token is not valid; empty if it is."""

    account_id: str
    name: str
    role: Role
    token: Token
    fault: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Password:
    """The digest of a user's password; None if no password is right, and `fault` says why."""

    exists: bool = True
    digest: str | None = None
    fault: str = ""


class TokenStore:
    """Writer and reader of tokens and logins."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def bearer(self, token: str, now: datetime) -> Bearer | None:
        """Return the account and token of this secret, valid or not, or None if the token is unknown."""
        return await self._holder(col(TokenRow.sha256) == digest(token), now)

    async def holder(self, token_id: str, now: datetime) -> Bearer | None:
        """Return the account and token of this token id, valid or not, or None if the token is unknown."""
        return await self._holder(col(TokenRow.id) == token_id, now)

    async def still_opens(self, token_id: str, account_id: str, role: Role, now: datetime) -> bool:
        """Return whether a token is still valid, with the same account and role. Its scopes never change."""
        found = await self.holder(token_id, now)
        return found is not None and not found.fault and (found.account_id, found.role) == (account_id, role)

    @database_method
    async def _holder(self, condition: Any, now: datetime) -> Bearer | None:
        query = select(AccountRow, TokenRow).join(TokenRow, col(TokenRow.user) == col(AccountRow.name)).where(condition)
        async with self._database.read() as session:
            found = (await session.exec(query)).first()
        if found is None:
            return None
        account, row = found
        kept = token_of(row)
        fault = "belongs to a user who is disabled" if account.disabled else kept.fault(now)
        return Bearer(account_id=account.id, name=account.name, role=Role(account.role), token=kept, fault=fault)

    @database_method
    async def touch(self, token_id: str, now: datetime) -> None:
        """Record that a token was used."""
        async with self._database.write() as session:
            await session.exec(update(TokenRow).where(col(TokenRow.id) == token_id).values(last_used_at=now))

    @database_method
    async def password(self, name: str) -> Password:
        """Return what is known of a user's password. Takes the same time whether the user exists or not."""
        async with self._database.read() as session:
            row = await session.get(AccountRow, name)
        if row is None:
            return Password(exists=False, fault="there is no such user")
        if row.disabled:
            return Password(fault="the user is disabled")
        return Password(digest=row.password, fault="" if row.password else "the user has no password")

    @database_method
    async def add_session(self, token: NewToken, kept: str, actor: Actor, now: datetime) -> Token | None:
        """Store the token of a login whose password was right. `kept`: the digest of that password.

        Return None if the account was deleted, disabled or given another password since the login began.
        """
        detail = f"{token.kind} {token.id}, {_describe_expiry(token)}"
        async with self._database.write() as session:
            row = await session.get(AccountRow, token.user, with_for_update=True)
            if row is None or row.password != kept or row.disabled:
                return None
            by = replace(actor, name=row.name, account_id=row.id)
            add_entry(
                session, AuditEntry(at=now, actor=by, verb="login", kind="user", target=token.user, detail=detail)
            )
            return _add(session, token, now)

    @database_method
    async def add(self, token: NewToken, actor: Actor, now: datetime) -> Token:
        """Store a new token. Raises NotFound when the account does not exist."""
        async with self._database.write() as session:
            await lock_account(session, token.user, actor)
            detail = f"for {token.user}, {' '.join(sorted(token.scopes))}, {_describe_expiry(token)}"
            add_entry(
                session, AuditEntry(at=now, actor=actor, verb="create", kind="token", target=token.id, detail=detail)
            )
            return _add(session, token, now)

    @database_method
    async def tokens(self, only: str | None = None) -> list[Token]:
        """Return all tokens, or those of one account; newest first."""
        query = select(TokenRow).order_by(col(TokenRow.created_at).desc(), TokenRow.id)
        if only is not None:
            query = query.where(TokenRow.user == only)
        async with self._database.read() as session:
            return [token_of(row) for row in await session.exec(query)]

    @database_method
    async def token(self, token_id: str) -> Token | None:
        """Return one token by its id."""
        async with self._database.read() as session:
            row = (await session.exec(select(TokenRow).where(TokenRow.id == token_id))).first()
        return token_of(row) if row else None

    @database_method
    async def revoke(self, token_id: str, actor: Actor, now: datetime) -> None:
        """Revoke a token. Raises NotFound; Conflict for the token from the settings."""
        async with self._database.write() as session:
            row = (await session.exec(select(TokenRow).where(TokenRow.id == token_id).with_for_update())).first()
            if row is None:
                raise NotFound(f"There is no token {token_id!r}.")
            if row.kind == "settings":
                raise Conflict(
                    "This token is the one in `admin_token_file`.",
                    "Write another token into that file and restart the master: the old one is invalid then.",
                )
            row.revoked_at = row.revoked_at or now
            session.add(row)
            add_entry(
                session,
                AuditEntry(at=now, actor=actor, verb="revoke", kind="token", target=token_id, detail=f"of {row.user}"),
            )

    @database_method
    async def sweep(self, now: datetime, keep: timedelta) -> None:
        """Delete tokens that have been invalid for this long."""
        async with self._database.write() as session:
            ended = (col(TokenRow.expires_at) < now - keep) | (col(TokenRow.revoked_at) < now - keep)
            await session.exec(delete(TokenRow).where(ended))


def is_stale(token: Token, now: datetime) -> bool:
    """Return whether the last recorded use of a token is old enough to record another."""
    return token.last_used_at is None or now - token.last_used_at >= timedelta(seconds=TOUCH_S)


def token_of(row: TokenRow) -> Token:
    """Return a row as a value."""
    kind: TokenKind = row.kind  # type: ignore[assignment]
    return Token(
        id=row.id,
        user=row.user,
        kind=kind,
        label=row.label,
        scopes=frozenset(Scope(scope) for scope in row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        last_used_at=row.last_used_at,
        revoked_at=row.revoked_at,
    )


def _add(session: AsyncSession, token: NewToken, now: datetime) -> Token:
    row = TokenRow(
        sha256=digest(token.secret),
        id=token.id,
        user=token.user,
        kind=token.kind,
        label=token.label,
        scopes=sorted(scope.value for scope in token.scopes),
        created_at=now,
        expires_at=token.expires_at,
    )
    session.add(row)
    return token_of(row)


def _describe_expiry(token: NewToken) -> str:
    return f"until {token.expires_at:%Y-%m-%d %H:%M} UTC" if token.expires_at else "without an expiry"
