"""Protect browsers against DNS rebinding and against calls from other sites' pages."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from worker_service.api.responses import failure
from worker_service.contract import Code
from worker_service.core.settings import ApiSettings


def refusal(headers: Headers, settings: ApiSettings) -> JSONResponse | None:
    """Return a refusal for a call with a foreign Host or from another site's page, otherwise None."""
    hosts = headers.getlist("host")
    host = hosts[0] if len(hosts) == 1 else ""
    if host_name(host) not in settings.allowed_hosts:
        text = f"This worker is not called {host[:100]!r}. Add the name to api.allowed_hosts in its settings."
        return failure(text, Code.POLICY)
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return failure("Calls from other sites' pages are refused. Open the worker's own page.", Code.POLICY)
    return None


def host_name(host: str) -> str:
    """Return the name in a Host header without its port: `::1` for `[::1]:8081`."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).strip("[]").lower()
