"""Authentication by bearer tokens with scopes, stored as digests. No cookies, because GET has effects here."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import BadRequest

SCOPES: Final = frozenset({"read", "operate", "console"})
LINE: Final = "a line of it is `<sha256 of the token> <scope,scope> <label>`, scopes: read, operate, console."


class Token(msgspec.Struct, frozen=True):
    """One line of the tokens file."""

    sha256: str
    scopes: frozenset[str]
    label: str


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read the tokens in a file of lines `<sha256 hex> <scope,scope> <label>`. Raises BadRequest with the line."""
    try:
        lines = path.read_text().splitlines()
    except OSError as err:
        raise BadRequest(f"The tokens file {path} cannot be read: {err.strerror}. Create it; {LINE}") from err
    tokens = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=2)
        scopes = frozenset(words[1].split(",")) if len(words) > 1 else frozenset[str]()
        if len(words[0]) != 64 or not scopes or not scopes <= SCOPES:
            raise BadRequest(f"Line {number} of {path} is not `<sha256> <scopes> <label>`, scopes {sorted(SCOPES)}.")
        tokens.append(Token(words[0].lower(), scopes, words[2] if len(words) > 2 else ""))
    return tuple(tokens)


def find_token(tokens: Sequence[Token], authorization: str | None) -> Token | None:
    """Return the token in an Authorization header, or None. Compares all tokens, in constant time."""
    scheme, _, secret = (authorization or "").partition(" ")
    digest = hashlib.sha256(secret.strip().encode()).hexdigest()
    found = None
    for token in tokens:
        if hmac.compare_digest(token.sha256, digest) and scheme.lower() == "bearer":
            found = token
    return found
