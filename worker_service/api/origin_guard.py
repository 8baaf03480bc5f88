"""Protect browsers against DNS rebinding and against calls from other sites' pages."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers
from starlette.types import Scope

from http_bounds.guard import host_name, host_of
from worker_service.api.responses import failure
from worker_service.contract import Code
from worker_service.core.settings import ApiSettings


def refusal(scope: Scope, settings: ApiSettings) -> JSONResponse | None:
    """Return a refusal for a call with a foreign Host or from another site's page, otherwise None.

    Consoles judge their websockets by themselves: some other sites may show them.
    """
    if scope["type"] != "http":
        return None
    headers, host = Headers(scope=scope), host_of(scope)
    if host_name(host) not in settings.allowed_hosts:
        text = f"This worker is not called {host[:100]!r}. Add the name to api.allowed_hosts in its settings."
        return failure(text, Code.POLICY)
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return failure("Calls from other sites' pages are refused. Open the worker's own page.", Code.POLICY)
    return None
