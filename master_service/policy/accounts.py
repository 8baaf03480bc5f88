"""Users, their tokens and their passwords, as values and rules. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Literal

from master_service.policy.permissions import Role, Scope

NAME: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")
RESERVED: Final = frozenset({"me", "saltern", "nobody"})
"""Names with a meaning of their own in paths and in the audit."""

MIN_PASSWORD: Final = 10
MAX_PASSWORD: Final = 256
TOUCH_S: Final = 60.0
"""The resolution of `last_used_at`, so that a busy token does not write with each request."""

_TOKEN_PREFIX: Final = "saltern_"  # noqa: S105 - scanners for leaked secrets recognize it

TokenKind = Literal["settings", "session", "token"]
"""settings: from `admin_token_file`; session: of a login; token: created for a program."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Account:
    """A user.

    The name may be given to another account after this one is deleted, the id never.
    """

    id: str = field(default_factory=lambda: secrets.token_hex(8))
    name: str
    role: Role
    created_at: datetime
    disabled: bool = False
    has_password: bool = False
    email: str = ""
    webhook_url: str = ""
    vms: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Token:
    """A bearer token without its secret, which is shown once and stored only by its holder.

    `expires_at` is by the wall clock. If the clock is wrong by d, the token ends d earlier or later.
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
        """Return why the token is no longer valid; empty when it is valid."""
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return f"has expired ({self.expires_at:%Y-%m-%d %H:%M} UTC)"
        return ""


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenRequest:
    """The requested properties of a new token, or None for a default."""

    label: str = ""
    scopes: Collection[Scope] | None = None
    for_s: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class NewToken:
    """A new token. Its holder sends `secret`; the master stores only the digest."""

    user: str
    kind: TokenKind
    label: str
    scopes: frozenset[Scope]
    expires_at: datetime | None
    secret: str = field(default_factory=lambda: _TOKEN_PREFIX + secrets.token_urlsafe(32), repr=False)
    id: str = field(default_factory=lambda: secrets.token_hex(8))


def digest(token: str) -> str:
    """Return the stored digest of a token. 256 random bits need neither salt nor stretching."""
    return hashlib.sha256(token.encode()).hexdigest()


def validate_name(value: str) -> str:
    """Return the name of a user. Raises ValueError."""
    if not NAME.fullmatch(value):
        raise ValueError("use 1 to 63 lowercase letters, digits, dots, dashes or underscores; the first a letter")
    if value in RESERVED:
        raise ValueError(f"{value} is reserved; use another name")
    return value


def validate_password(value: str) -> str:
    """Return a new password. Raises ValueError."""
    if not MIN_PASSWORD <= len(value) <= MAX_PASSWORD:
        raise ValueError(f"a password has {MIN_PASSWORD} to {MAX_PASSWORD} characters")
    if len(set(value)) < MIN_PASSWORD // 2:
        raise ValueError("a password has more than a few different characters")
    return value


def allowed_scopes(requested: Collection[Scope] | None, held: Collection[Scope]) -> frozenset[Scope]:
    """Return the scopes of a new token; the default is all that its creator has. Raises ValueError."""
    if requested is None:
        return frozenset(held)
    if beyond := sorted(set(requested) - set(held)):
        raise ValueError(f"you cannot grant {' or '.join(beyond)}: your own token does not have it")
    return frozenset(requested)
