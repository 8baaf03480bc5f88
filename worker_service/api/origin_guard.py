"""What a browser may be tricked into: another host's name for this worker, or another site's page behind a call."""

from __future__ import annotations

from fastapi.responses import JSONResponse
from starlette.datastructures import Headers

from worker_service.api.responses import failure
from worker_service.contract import Code
from worker_service.core.settings import ApiSettings


def refusal(headers: Headers, settings: ApiSettings) -> JSONResponse | None:
    """A refusal for calls that no page of this worker and no program would make; None for all others."""
    hosts = headers.getlist("host")
    host = hosts[0] if len(hosts) == 1 else ""
    if host_name(host) not in settings.allowed_hosts:
        text = f"This worker is not called {host[:100]!r}. Add the name to facade.allowed_hosts in its settings."
        return failure(text, Code.POLICY)
    origin = headers.get("origin")
    foreign = origin is not None and origin.lower() not in (f"http://{host.lower()}", f"https://{host.lower()}")
    if foreign or headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return failure("Calls from other sites' pages are refused. Open the worker's own page.", Code.POLICY)
    return None


def host_name(host: str) -> str:
    """The name in a Host header, without its port: `[::1]:8081` is `::1`."""
    name, _, port = host.rpartition(":")
    return (name if port.isdigit() and name else host).strip("[]").lower()
