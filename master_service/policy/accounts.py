"""Users, their tokens and their passwords, as values and rules. Pure; `store` keeps them, `api.people` serves them."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final, Literal

from master_service.policy.permissions import Role, Scope

NAME: Final = re.compile(r"^[a-z][a-z0-9._-]{0,62}$")
RESERVED: Final = frozenset({"me", "saltern", "nobody"})
"""Words of our own in paths and in the audit."""

MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 256
FREE_TRIES: Final = 5
LOCK_S: Final = 30.0
LONGEST_LOCK_S: Final = 900.0
TOUCH_S: Final = 60.0
"""`last_used_at` is this coarse, so that a busy token does not write at each request."""

_TOKEN_PREFIX: Final = "saltern_"  # noqa: S105 - so that programs that look for leaked secrets know one when they see it

TokenKind = Literal["settings", "session", "token"]
"""settings: from `admin_token_file`; session: of a login; token: made on purpose, for a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A user. `locked_until`: passwords are not accepted before, since too many were wrong."""

    name: str
    role: Role
    created_at: datetime
    disabled: bool = False
    has_password: bool = False
    locked_until: datetime | None = None
    email: str = ""
    webhook_url: str = ""
    vms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A bearer token, without what it is a token by: that is shown once and kept by its holder alone.

    `expires_at` is a date of the wall clock: one that is wrong by d lets it end d earlier or later, and no more.
    """

    id: str
    user: str
    kind: TokenKind
    label: str
    scopes: frozenset[Scope]
    created_at: datetime
    expires_at: datetime | None = None
    last_used_at: datetime | None = None
    revoked_at: datetime | None = None

    def fault(self, now: datetime) -> str:
        """Why it opens nothing any more; empty when it does."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return f"has expired ({self.expires_at:%Y-%m-%d %H:%M} UTC)"
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """What somebody asks of a token that is to be made; None: the usual."""

    label: str = ""
    scopes: Collection[Scope] | None = None
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewToken:
    """A token to be made. `secret` is what its holder sends; only its digest is kept."""

    user: str
    kind: TokenKind
    label: str
    scopes: frozenset[Scope]
    expires_at: datetime | None
    secret: str = field(default_factory=lambda: _TOKEN_PREFIX + secrets.token_urlsafe(32), repr=False)
    id: str = field(default_factory=lambda: secrets.token_hex(8))


def digest(token: str) -> str:
    """What is kept of a token. No salt and no stretching: it is 256 random bits, nobody guesses those."""
    return hashlib.sha256(token.encode()).hexdigest()


def validate_name(value: str) -> str:
    """The name of a user. Raises ValueError."""
    if not NAME.fullmatch(value):
        raise ValueError("use 1 to 63 small letters, digits, dots, dashes or underscores; the first a letter")
    if value in RESERVED:
        raise ValueError(f"{value} has a meaning of its own here; use another name")
    return value


def validate_password(value: str) -> str:
    """A password that is to be set. Raises ValueError."""
    if not MIN_PASSWORD <= len(value) <= MAX_PASSWORD:
        raise ValueError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if len(set(value)) < MIN_PASSWORD // 2:
        raise ValueError("a password has more than a few different characters")
    return value


def lock_after(failures: int, now: datetime) -> datetime | None:
    """Until when passwords are refused after so many wrong ones in a row; None: the next may be tried at once."""
    if failures < FREE_TRIES:
        return None
    return now + timedelta(seconds=min(LONGEST_LOCK_S, LOCK_S * 2.0 ** min(failures - FREE_TRIES, 16)))


def allowed_scopes(asked: Collection[Scope] | None, held: Collection[Scope]) -> frozenset[Scope]:
    """The scopes of a token made by somebody who holds `held`; by default all of them. Raises ValueError."""
    if asked is None:
        return frozenset(held)
    if beyond := sorted(set(asked) - set(held)):
        raise ValueError(f"you cannot give {' or '.join(beyond)}: your own token has not got it")
    return frozenset(asked)
