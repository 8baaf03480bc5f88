"""Each answer names its request in `X-Request-ID`: by the client's own id, or by a new one. The log names it too."""

from __future__ import annotations

import re
import uuid
from typing import Final

from asgi_correlation_id import CorrelationIdMiddleware, correlation_id
from starlette.types import ASGIApp

HEADER: Final = "X-Request-ID"
_ACCEPTED: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,128}")
"""A client's id that may go into logs and headers."""


def around(app: ASGIApp) -> ASGIApp:
    """Return the application with an id for each request."""
    # Not by `validator`, which logs a warning at each id that it refuses: any client could fill the log.
    return CorrelationIdMiddleware(
        app, header_name=HEADER, generator=_new, validator=None, transformer=_accepted_or_new
    )


def current() -> str:
    """Return the id of the request at work, or an empty string."""
    return correlation_id.get() or ""


def _new() -> str:
    return str(uuid.uuid4())


def _accepted_or_new(given: str) -> str:
    return given if _ACCEPTED.fullmatch(given) else _new()
