"""The worker API: `GET&POST /vmachines/<verb>` of the contract over Salt's own loader, and pages for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from http_bounds.guard import Guard
from web_assets import NOVNC, PAGE_HEADERS, api_docs
from worker_service import __version__
from worker_service.api import openapi
from worker_service.api.access import Access
from worker_service.api.auth import TokenFile
from worker_service.api.calls import METHODS, SCOPE, Calls, Modules
from worker_service.api.console_proxy import ConsoleProxy
from worker_service.api.disk_download import DiskDownloads
from worker_service.api.origin_guard import refusal
from worker_service.api.request_body import BODY_BYTES, too_large
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

    app.add_middleware(Guard, refuse=partial(refusal, settings=settings), most_body=BODY_BYTES, too_large=too_large)

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
    app.add_api_route("/vmachines/{uuid}/disks/{disk}", DiskDownloads(worker).serve, include_in_schema=False)

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
