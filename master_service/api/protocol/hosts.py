"""Refuse requests under a foreign host name, which only a browser that was tricked sends (DNS rebinding)."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.types import Scope

from http_bounds.guard import host_name, host_of
from master_service.api.protocol.errors import as_answer
from master_service.core.errors import Forbidden
from master_service.core.settings import Settings


def refusal(scope: Scope, settings: Settings) -> JSONResponse | None:
    """Return a refusal for a request with a Host that is none of this master's names, otherwise None."""
    host = host_of(scope)
    if host_name(host) in settings.host_names:
        return None
    text = f"This master is not called {host[:100]!r}."
    return as_answer(Forbidden(text, "Add the name to allowed_hosts in the master's settings, or set public_url."))
