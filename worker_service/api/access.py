"""Access to the worker API: tokens, rate limits, and a log line for each call."""

from __future__ import annotations

import logging
import time
from typing import Final

import msgspec
from starlette.requests import HTTPConnection

from http_bounds.rate_limit import Limiter
from worker_service.api.auth import Token, TokenFile, find_token
from worker_service.contract import Code
from worker_service.core.errors import Refused

log = logging.getLogger("saltern.api")
_UNAUTHENTICATED: Final = "No valid token. Send the header `Authorization: Bearer TOKEN` with a token of this worker."


class Access:
    """The tokens of this worker and their rate limit.

    Args:
        tokens: the accepted tokens.
        per_s: calls a second for each token.
    """

    def __init__(self, tokens: TokenFile, per_s: float) -> None:
        self._tokens = tokens
        self._limiter = Limiter[str](per_s)

    def identify(self, connection: HTTPConnection) -> Token:
        """Return the token of a call and count the call against its limit. Raises Refused."""
        given = connection.headers.getlist("authorization")
        token = find_token(self._tokens.tokens(), given[0]) if len(given) == 1 else None
        # Calls without a token count for their address, so that guessing tokens is limited too.
        caller = f"token {token.sha256}" if token else f"from {_address(connection)}"
        if self._limiter.wait_s(caller, time.monotonic()):
            text = "Too many calls a second with this token or from this address. Try again later."
            raise Refused(text, code=Code.TOO_MANY)
        if token is None:
            raise Refused(_UNAUTHENTICATED, code=Code.NO_TOKEN)
        return token

    def require_valid(self, token: Token) -> None:
        """Raise Refused if a token was removed or changed since its call began."""
        if token not in self._tokens.tokens():
            raise Refused(_UNAUTHENTICATED, code=Code.NO_TOKEN)

    def scopes(self, sha256: str) -> frozenset[str]:
        """Return the scopes of the token with this digest; none of a token that was removed."""
        return next((token.scopes for token in self._tokens.tokens() if token.sha256 == sha256), frozenset())


def require_scope(token: Token, scope: str, what: str) -> None:
    """Raise Refused if a token lacks a scope."""
    if scope not in token.scopes:
        text = f"This token may not {what}: it lacks the scope {scope!r}. Use another token."
        raise Refused(text, code=Code.POLICY)


class Audit:
    """The log line of one call: the caller, the verb, the VM, and the result.

    It has no other parameter, because a URI may hold a password. As JSON, a name with a line break stays one line.
    """

    def __init__(self, connection: HTTPConnection, verb: str) -> None:
        self.address = _address(connection)
        self.verb = verb
        self._began = time.monotonic()
        self.by = "nobody"
        self.vm = ""

    def write(self, status: int, code: str | None) -> None:
        """Write the line. `status` is the HTTP status."""
        line = {
            "verb": self.verb,
            "vm": self.vm[:80],
            "by": self.by,
            "from": self.address,
            "status": status,
            "code": code,
            "ms": round((time.monotonic() - self._began) * 1000),
        }
        log.info("audit %s", msgspec.json.encode(line).decode())


def _address(connection: HTTPConnection) -> str:
    return connection.client.host if connection.client else ""
