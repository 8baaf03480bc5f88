"""Who may call, how often, and what is written down about it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Final

import msgspec
from starlette.requests import HTTPConnection

from worker_service.api.auth import Token, holder
from worker_service.api.rate_limit import Limiter
from worker_service.contract import Code
from worker_service.core.errors import Refused

log = logging.getLogger("saltern.facade")
_ANSWER: Final = "No valid token. Send the header `Authorization: Bearer TOKEN` with a token of this worker."


class Access:
    """The tokens of this worker, and how many calls each may make.

    Args:
        tokens: who is known here.
        per_s: calls a second for each of them.
    """

    def __init__(self, tokens: Sequence[Token], per_s: float) -> None:
        self._tokens = tokens
        self._limiter = Limiter(per_s)

    def identify(self, connection: HTTPConnection) -> Token:
        """The token that a call shows, counted against its limit; raises Refused."""
        token = holder(self._tokens, connection.headers.get("authorization"))
        # Calls without a token count for where they come from: guessing is not free either.
        who = f"token {token.sha256}" if token else f"from {_address(connection)}"
        if self._limiter.wait_s(who, time.monotonic()):
            text = "There are more calls a second with this token, or from this address, than may be. Try again later."
            raise Refused(text, code=Code.TOO_MANY)
        if token is None:
            raise Refused(_ANSWER, code=Code.NO_TOKEN)
        return token


def require_scope(token: Token, scope: str, what: str) -> None:
    """Raise Refused for a token that may not do this."""
    if scope not in token.scopes:
        text = f"This token may not {what}: it lacks the scope {scope!r}. Use another token."
        raise Refused(text, code=Code.POLICY)


class Audit:
    """One line about one call: who did what to which VM, and how it ended.

    No other parameter is in it: a URI may hold a password. JSON: a name with a line break in it stays one line.
    """

    def __init__(self, connection: HTTPConnection, verb: str) -> None:
        self.address = _address(connection)
        self.verb = verb
        self._began = time.monotonic()
        self.by = "nobody"
        self.vm = ""

    def write(self, status: int, code: str | None) -> None:
        """Write the line. `status` is HTTP's."""
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
