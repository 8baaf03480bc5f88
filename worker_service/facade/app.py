"""The HTTP door: `GET&POST /vmachines/<verb>` of the contract over Salt's own loader, and a page for people."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles

from worker_service import __version__
from worker_service.contract import HTTP_STATUS, Code
from worker_service.errors import BadRequest
from worker_service.facade.auth import Token, holder
from worker_service.settings import Facade

log = logging.getLogger("saltern.facade")

SCOPE: Final[Mapping[str, str]] = {
    "start": "operate",
    "modify": "operate",
    "destroy": "operate",
    "suspend": "operate",
    "resume": "operate",
    "shutdown": "operate",
    "save_retry": "operate",
    "cache_clean": "operate",
    "status": "read",
    "list": "read",
    "version": "read",
    "plan": "read",
    "capabilities": "read",
    "cache": "read",
}
"""The verbs behind this door, and the scope that each one needs."""

_STATIC: Final = Path(__file__).parent / "static"
_BODY_BYTES: Final = 64 << 10
_AT_ONCE: Final = 32
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}


def create_app(settings: Facade, modules: Mapping[str, Callable[..., Any]], tokens: tuple[Token, ...]) -> FastAPI:
    """The facade over loaded execution modules. Everything it answers comes from them."""
    app = FastAPI(title="Saltern worker", version=__version__, openapi_url="/openapi.json", redoc_url=None)
    busy = asyncio.Semaphore(_AT_ONCE)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refusal = _refusal(request, settings)
        answer = refusal or await call_next(request)
        for name, value in _HEADERS.items():
            answer.headers.setdefault(name, value)
        return answer

    @app.api_route("/vmachines/{verb}", methods=["GET", "POST"], summary="A verb of the contract")
    async def vmachines(verb: str, request: Request) -> JSONResponse:
        if verb not in SCOPE:
            return _failure(404, f"There is no verb {verb!r}. There are: {', '.join(sorted(SCOPE))}.", Code.NOT_FOUND)
        token = holder(tokens, request.headers.get("authorization"))
        if token is None:
            text = "No valid token. Send the header `Authorization: Bearer TOKEN` with a token of this worker."
            return _failure(401, text, Code.POLICY, {"WWW-Authenticate": 'Bearer realm="saltern worker"'})
        if SCOPE[verb] not in token.scopes:
            text = f"This token may not {verb}: it lacks the scope {SCOPE[verb]!r}. Use another token."
            return _failure(403, text, Code.POLICY)
        try:
            parameters = await _parameters(request)
            function = modules[f"vmachines.{verb}"]
            async with busy:
                reply = await asyncio.to_thread(_call, function, verb, parameters)
        except BadRequest as err:
            return _failure(err.http_status, str(err), err.code)
        log.info(
            "%s %s by %s: %s",
            verb,
            parameters.get("name") or parameters.get("uuid") or "",
            token.label,
            reply["success"],
        )
        status = 200 if reply["success"] else HTTP_STATUS[Code(reply.get("code", Code.INTERNAL))]
        return JSONResponse(reply, status)

    @app.get("/healthz", summary="Whether this process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    @app.get("/", include_in_schema=False)
    @app.get("/webui", include_in_schema=False)
    async def webui() -> FileResponse:
        return FileResponse(_STATIC / "index.html")

    app.mount("/static", StaticFiles(directory=_STATIC))
    return app


def _call(function: Callable[..., Any], verb: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    try:
        reply: dict[str, Any] = function(**parameters)
    except TypeError as err:
        # Python's own words name the parameter that is missing or that nobody knows.
        raise BadRequest(f"{str(err).replace('()', '')}. See the parameters of {verb} in the contract.") from err
    return reply


async def _parameters(request: Request) -> dict[str, Any]:
    """Query, form or JSON: whichever was sent, the same parameters. Raises BadRequest."""
    parameters: dict[str, Any] = dict(request.query_params)
    body = await _body(request)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not body:
        return parameters
    if kind == "application/json":
        try:
            sent = msgspec.json.decode(body)
        except msgspec.DecodeError as err:
            raise BadRequest(f"The body is not JSON: {err}. Correct it.") from err
        if not isinstance(sent, dict):
            raise BadRequest("The body must be a JSON object of parameters.")
        return {**parameters, **sent}
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        async with request.form() as form:
            return {**parameters, **{key: value for key, value in form.items() if isinstance(value, str)}}
    raise BadRequest(f"A body of type {kind or 'unknown'} is not understood. Send JSON or a form.")


async def _body(request: Request) -> bytes:
    """The body, as long as it is small; kept by the request, so that a form can be read from it too."""
    length = request.headers.get("content-length", "")
    if (length.isdigit() and int(length) > _BODY_BYTES) or (not length and "transfer-encoding" in request.headers):
        raise BadRequest(f"The body is larger than {_BODY_BYTES >> 10} KiB, or does not say its size. Send less.")
    return await request.body()


def _refusal(request: Request, settings: Facade) -> JSONResponse | None:
    """Refuse what a browser was tricked into: another host's name for us, or another site's page behind the call."""
    host = request.headers.get("host", "").rpartition("@")[2]
    name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
    if name.strip("[]") not in settings.allowed_hosts:
        text = f"This worker is not called {name!r}. Add the name to facade.allowed_hosts in its settings."
        return _failure(403, text, Code.POLICY)
    if request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
        return _failure(403, "Calls from other sites' pages are refused. Open the worker's own page.", Code.POLICY)
    return None


def _failure(status: int, message: str, code: Code, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"success": False, "message": message, "code": code.value}, status, headers)
