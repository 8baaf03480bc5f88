"""`/docs`: the operations of a service's OpenAPI document, which a reader can also call, by Swagger UI.

FastAPI's own page loads Swagger UI from another host and starts it by an inline script. This one works without a
network and under a strict Content-Security-Policy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.staticfiles import StaticFiles

from web_assets import PAGE_HEADERS, SWAGGER_UI

_FOLDER: Final = Path(__file__).parent
_swagger_ui: Final = StaticFiles(directory=SWAGGER_UI, check_dir=False)


def install(app: FastAPI) -> None:
    """Serve the page and its files."""
    app.add_route("/docs", _page, include_in_schema=False)
    app.add_route("/docs/api_docs.js", _script, include_in_schema=False)
    app.add_route("/docs/swagger_ui/{path:path}", _file_of_swagger_ui, include_in_schema=False)


async def _page(_request: Request) -> Response:
    return FileResponse(_FOLDER / "api_docs.html", headers=PAGE_HEADERS)


async def _script(_request: Request) -> Response:
    return FileResponse(_FOLDER / "api_docs.js", headers=PAGE_HEADERS)


async def _file_of_swagger_ui(request: Request) -> Response:
    answer = await _swagger_ui.get_response(request.path_params["path"], request.scope)
    answer.headers.update(PAGE_HEADERS)
    return answer
