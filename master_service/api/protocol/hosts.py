"""Refuse requests under a foreign host name, which only a browser that was tricked sends (DNS rebinding)."""

from __future__ import annotations

from collections.abc import Collection

from fastapi.responses import JSONResponse
from starlette.types import Scope

from http_bounds.guard import host_name, host_of
from master_service.api.protocol.errors import as_answer
from master_service.core.errors import Forbidden


def refusal(scope: Scope, names: Collection[str]) -> JSONResponse | None:
    """Return a refusal for a request with a Host that is none of the master's `names`, otherwise None."""
    host = host_of(scope)
    if host_name(host) in names:
        return None
    text = f"This master is not called {host[:100]!r}."
    return as_answer(Forbidden(text, "Add the name to allowed_hosts in the master's settings, or set public_url."))
