"""The secret that opens one console once. A master or a worker makes it, and both keep only its digest."""

from __future__ import annotations

import hashlib
import secrets
from typing import Final

LIFE_S: Final = 30.0


def make() -> tuple[str, str]:
    """Return a new secret of 256 bits, and its digest."""
    secret = secrets.token_urlsafe(32)
    return secret, digest(secret)


def digest(secret: str) -> str:
    """Return the SHA-256 of a ticket, in hex."""
    return hashlib.sha256(secret.encode()).hexdigest()
