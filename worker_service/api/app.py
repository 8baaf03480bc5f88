"""The worker API: `GET&POST /vmachines/<verb>` of the contract over Salt's own loader, and pages for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from web_assets import NOVNC, PAGE_HEADERS, api_docs
from worker_service import __version__
from worker_service.api import openapi
from worker_service.api.access import Access
from worker_service.api.auth import TokenFile
from worker_service.api.calls import METHODS, SCOPE, Calls, Modules
from worker_service.api.console_proxy import ConsoleProxy
from worker_service.api.origin_guard import refusal
from worker_service.api.responses import failure
from worker_service.contract import Code
from worker_service.core.settings import ApiSettings
from worker_service.state.context import WorkerContext

_STATIC: Final = Path(__file__).parent / "static"
_PAGES: Final = {"/": "index.html", "/webui": "index.html"}


def create_app(settings: ApiSettings, modules: Modules, tokens: TokenFile, worker: WorkerContext) -> FastAPI:
    """Return the API over loaded execution modules. Every verb is theirs; only consoles come from the worker itself."""
    app = FastAPI(title="Saltern worker", version=__version__, docs_url=None, redoc_url=None, **openapi.ABOUT)
    access = Access(tokens, settings.calls_per_s)
    calls, consoles = Calls(modules, access, worker), ConsoleProxy(worker, settings, access)

    app.add_middleware(Guard, settings=settings)

    for verb, scope in SCOPE.items():
        for method in METHODS[verb]:
            extra = openapi.operation(verb, scope, modules[f"vmachines.{verb}"], body=method == "POST")
            name = f"{verb}-{method}"
            app.add_api_route(
                f"/vmachines/{verb}",
                calls.answer,
                methods=[method],
                name=name,
                openapi_extra=extra,
                response_model=None,
            )

    app.add_api_route(
        "/vmachines/screenshot", consoles.screenshot, openapi_extra=openapi.screenshot(), response_class=Response
    )
    app.add_api_websocket_route("/vmachines/{uuid}/screen", consoles.serve)

    @app.get("/healthz", tags=["health"], summary="Whether this process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    for path, page in _PAGES.items():
        app.add_api_route(path, _page(page), include_in_schema=False)
    api_docs.install(app)
    app.mount("/static/novnc", StaticFiles(directory=NOVNC, check_dir=False))
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _bug)
    made = app.openapi()
    made["components"] = openapi.components()
    return app


class Guard:
    """Around every HTTP answer: refuses what a browser may be tricked into, and says how answers may be used.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` takes a task of its own and two streams for each request.
    """

    def __init__(self, app: ASGIApp, settings: ApiSettings) -> None:
        self._app = app
        self._settings = settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in PAGE_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        answer = refusal(Headers(scope=scope), self._settings) or self._app
        await answer(scope, receive, guarded)


def _page(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(_STATIC / name)

    return page


async def _not_found(request: Request, err: Exception) -> JSONResponse:
    """Paths and methods that there are not, in the shape of all other refusals."""
    assert isinstance(err, HTTPException)  # noqa: S101 - registered for nothing else
    there = f"The verbs are {', '.join(sorted(SCOPE))}, by GET and POST" if "/vmachines/" in request.url.path else ""
    text = (
        f"{request.method} {request.url.path[:200]!r}: {err.detail}. {there or 'The page /docs shows what there is'}."
    )
    code = Code.NOT_FOUND if err.status_code == HTTPStatus.NOT_FOUND else Code.BAD_REQUEST
    return failure(text, code, status=err.status_code, headers=err.headers)


async def _bug(_request: Request, _err: Exception) -> Response:
    """The server logs the exception; the caller learns that it is not their fault."""
    text = "The worker API failed at this call: a bug. Its log has the cause."
    return failure(text, Code.INTERNAL, headers=PAGE_HEADERS)  # made outside of the guard
