"""Authentication by bearer tokens with scopes, stored as digests. No cookies, because GET has effects here."""

from __future__ import annotations

import hashlib
import hmac
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import BadRequest

log = logging.getLogger("saltern.api")
SCOPES: Final = frozenset({"read", "operate", "console"})
LINE: Final = "a line of it is `<sha256 of the token> <scope,scope> <label>`, scopes: read, operate, console."


class Token(msgspec.Struct, frozen=True):
    """One line of the tokens file."""

    sha256: str
    scopes: frozenset[str]
    label: str


class TokenFile:
    """The accepted tokens, as the file has them now: a removed token is invalid at once.

    A file that cannot be read, or has a wrong line, has no valid token.

    Args:
        path: the file, which exists and is right. Raises BadRequest otherwise.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = _content(path)
        self._tokens = _parse(path, self._content)

    def tokens(self) -> tuple[Token, ...]:
        """Return the tokens. The file is small: to read it is faster than to find out whether it has changed."""
        try:
            content = self._path.read_bytes()
        except OSError:
            content = b""
        if content != self._content:
            self._content, self._tokens = content, self._changed(content)
        return self._tokens

    def _changed(self, content: bytes) -> tuple[Token, ...]:
        try:
            tokens = _parse(self._path, content)
        except BadRequest as err:
            log.error("No token is valid now. %s", err)  # noqa: TRY400 - no bug
            return ()
        log.warning("%s has changed. Valid tokens: %d", self._path, len(tokens))
        return tokens


def read_tokens(path: Path) -> tuple[Token, ...]:
    """Read the tokens in a file of lines `<sha256 hex> <scope,scope> <label>`. Raises BadRequest with the line."""
    return _parse(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise BadRequest(f"The tokens file {path} cannot be read: {err.strerror}. Create it; {LINE}") from err


def _parse(path: Path, content: bytes) -> tuple[Token, ...]:
    tokens = []
    for number, line in enumerate(content.decode(errors="replace").splitlines(), 1):
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
