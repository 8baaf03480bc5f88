"""Operations on users and tokens, with the rules of `policy.accounts` and digests of passwords."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

import structlog

from master_service.core.clock import Clock
from master_service.core.errors import BadRequest, Forbidden, NotFound, TooMany, Unauthorised
from master_service.core.settings import Settings
from master_service.policy import accounts
from master_service.policy.accounts import Account, NewToken, Token, TokenKind, TokenRequest
from master_service.policy.audit import Actor
from master_service.policy.notice_formats import NO_MAIL
from master_service.policy.permissions import Role, Scope
from master_service.services.denial_log import DenialLog
from master_service.services.login_limits import LoginLimits, source_of
from master_service.services.password_hashing import Passwords
from master_service.store import Store

log = structlog.get_logger()
_WRONG = "The user or the password is wrong, or too many tries were wrong."


class AccountService:
    """Carries out requests about users and tokens. `api.protocol.auth` has already checked the permission."""

    def __init__(self, settings: Settings, store: Store, clock: Clock, denials: DenialLog) -> None:
        self._settings = settings
        self._store = store
        self._clock = clock
        self._denials = denials
        self._passwords = Passwords()
        self._limits = LoginLimits()

    async def login(self, name: str, password: str, request: TokenRequest, actor: Actor) -> tuple[Token, str]:
        """Return a token and its secret for a user's password. Raises Unauthorised, TooMany, BadRequest.

        The message and the time are the same if the user does not exist, is locked, or has another password.
        """
        token = self._build_token(name, "session", request, frozenset(Scope), self._settings.session_s)
        kept = await self._right_password(name, password, actor)
        added = await self._store.tokens.add_session(token, kept, actor, self._clock()) if kept else None
        if added is None:
            raise Unauthorised(_WRONG, "Check both, and wait a little before the next try.")
        return added, token.secret

    async def _right_password(self, name: str, password: str, actor: Actor) -> str | None:
        """Return the digest of a user's password if this is it, within the limits. A wrong one is noted.

        The digest has a salt of its own, so it also identifies the account and this setting of its password. Raises
        TooMany.
        """
        source, now = source_of(actor.address), self._clock().timestamp()
        try:
            self._limits.admit(source, now)
        except TooMany as err:
            await self._denials.record(actor, "login", str(err))
            raise
        reason = self._limits.count(name, source, now)
        kept = await self._store.tokens.password(name)
        usable = None if reason else kept.digest
        if await self._passwords.matches(password, usable, source):
            self._limits.succeeded(name, source)
            return usable
        reason = reason or kept.fault or "the password is wrong"
        # Users type passwords where a name belongs, so an unknown name is not stored.
        await self._denials.record_login(actor, name if kept.exists else "", reason)
        return None

    async def create_token(
        self, user: str, request: TokenRequest, held: frozenset[Scope], actor: Actor
    ) -> tuple[Token, str]:
        """Create a token for a program of this user, and return it with its secret. Raises BadRequest, NotFound.

        The caller has the scopes `held` and cannot grant others.
        """
        token = self._build_token(user, "token", request, held, self._settings.token_s)
        return await self._store.tokens.add(token, actor, self._clock()), token.secret

    async def create_user(self, name: str, role: Role, password: str | None, actor: Actor) -> Account:
        """Store a new user. Without a password, the user can only use tokens. Raises NameTaken, TooMany."""
        digest = await self._passwords.digest(password, actor.name) if password is not None else None
        account = Account(name=name, role=role, created_at=self._clock(), has_password=digest is not None)
        await self._store.accounts.add(account, digest, actor)
        return account

    async def change_user(
        self, name: str, changes: Mapping[str, Any], actor: Actor, kept: str | None = None
    ) -> Account:
        """Change the given ones of role, disabled, quota, password. Raises NotFound, Conflict, TooMany.

        `kept`: the digest of the password that the account must still have.
        """
        columns = dict(changes)
        if "password" in columns:
            columns["password"] = await self._passwords.digest(columns["password"], actor.name)
        await self._store.accounts.change(name, columns, actor, self._clock(), kept=kept)
        if "password" in columns:
            self._limits.forget(name)
        return await self.user(name)

    async def set_own_password(self, name: str, old: str, new: str, actor: Actor) -> None:
        """Change one's own password, with the old one. Counts as a login. Raises Forbidden, TooMany."""
        kept = await self._right_password(name, old, actor)
        if kept is None:
            raise Forbidden(
                "The old password is wrong, or too many tries were wrong.", "Ask an administrator to set it."
            )
        await self.change_user(name, {"password": new}, actor, kept=kept)

    async def set_contact(
        self, name: str, email: str | None, webhook_url: str | None, actor: Actor, *, verified: bool
    ) -> str | None:
        """Set where a user gets notices (None: no change), and return the secret of a new webhook.

        A mail address that is not `verified` is used only after `verify_email`. Raises NotFound, TooMany, and
        BadRequest for an address to which this master cannot send anything.
        """
        if email and not self._settings.smtp_host:
            raise BadRequest([("email", NO_MAIL)])
        columns = {key: value for key, value in (("email", email), ("webhook_url", webhook_url)) if value is not None}
        if webhook_url is not None:
            columns["webhook_secret"] = secrets.token_hex(32) if webhook_url else ""
        await self._store.accounts.change(name, columns, actor, self._clock(), verified=verified)
        return columns.get("webhook_secret") or None

    def locked_until(self) -> dict[str, datetime]:
        """Return the users of whom a source has tried too many passwords, and until when it has to wait."""
        now = self._clock()
        waits = self._limits.waits(now.timestamp())
        return {name: now + timedelta(seconds=wait_s) for name, wait_s in waits.items()}

    async def user(self, name: str) -> Account:
        """Return one user. Raises NotFound."""
        account = await self._store.accounts.account(name)
        if account is None:
            raise NotFound(f"There is no user {name!r}.", "`saltern users` shows those that you may see.")
        return account

    def _build_token(
        self, user: str, kind: TokenKind, request: TokenRequest, held: frozenset[Scope], default_s: float
    ) -> NewToken:
        try:
            scopes = accounts.allowed_scopes(request.scopes, held)
        except ValueError as err:
            raise BadRequest([("scopes", str(err))]) from err
        ends = self._clock() + timedelta(seconds=self._lifetime(request.for_s, default_s))
        return NewToken(user=user, kind=kind, label=request.label, scopes=scopes, expires_at=ends)

    def _lifetime(self, requested_s: float | None, default_s: float) -> float:
        longest_s = self._settings.token_max_s
        if requested_s is not None and requested_s > longest_s:
            raise BadRequest([("expires_in_s", f"at most {longest_s:g} seconds (the setting token_max_s)")])
        return min(requested_s or default_s, longest_s)
