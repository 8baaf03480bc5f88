"""The HTTP door: `GET&POST /vmachines/<verb>` of the contract over Salt's own loader, and pages for people."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from pathlib import Path
from typing import Final

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from worker_service import __version__
from worker_service.contract import Code
from worker_service.facade import description
from worker_service.facade.access import Access
from worker_service.facade.answers import failure
from worker_service.facade.auth import Token
from worker_service.facade.browser import refusal
from worker_service.facade.calls import METHODS, SCOPE, Calls, Modules
from worker_service.facade.screens import Screens
from worker_service.settings import Facade
from worker_service.worker import Worker

_STATIC: Final = Path(__file__).parent / "static"
_PAGES: Final = {"/": "index.html", "/webui": "index.html", "/docs": "docs.html"}
_HEADERS: Final = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; "
    "connect-src 'self'; img-src 'self' data:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'",
}


def create_app(settings: Facade, modules: Modules, tokens: tuple[Token, ...], worker: Worker) -> FastAPI:
    """The facade over loaded execution modules: every verb is theirs. Only screens come from the worker itself."""
    app = FastAPI(title="Saltern worker", version=__version__, docs_url=None, redoc_url=None)
    access = Access(tokens, settings.calls_per_s)
    calls, screens = Calls(modules, access, worker), Screens(worker, settings, access)

    @app.middleware("http")
    async def guard(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return _guarded(refusal(request.headers, settings) or await call_next(request))

    for verb, scope in SCOPE.items():
        for method in METHODS[verb]:
            extra = description.operation(verb, scope, modules[f"vmachines.{verb}"], body=method == "POST")
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
        "/vmachines/screenshot", screens.picture, openapi_extra=description.picture(), response_class=Response
    )
    app.add_api_websocket_route("/vmachines/{uuid}/screen", screens.serve)

    @app.get("/healthz", summary="Whether this process answers")
    async def healthz() -> dict[str, str]:
        return {"status": "ok", "version": __version__}

    for path, page in _PAGES.items():
        app.add_api_route(path, _page(page), include_in_schema=False)
    app.mount("/static", StaticFiles(directory=_STATIC))
    app.add_exception_handler(HTTPException, _not_found)
    app.add_exception_handler(Exception, _bug)
    made = app.openapi()
    made["components"] = description.components()
    return app


def _page(name: str) -> Callable[[], Awaitable[FileResponse]]:
    async def page() -> FileResponse:
        return FileResponse(_STATIC / name)

    return page


def _guarded(answer: Response) -> Response:
    for name, value in _HEADERS.items():
        answer.headers.setdefault(name, value)
    return answer


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
    return _guarded(failure("The facade failed at this call: a bug. Its log says more.", Code.INTERNAL))
