"""`/docs`: every path of the API on one page, written by the master itself.

FastAPI's own page loads its scripts from elsewhere, and shows nothing on a network that is closed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from html import escape
from typing import Any, Final

from fastapi import FastAPI
from starlette.requests import Request
from starlette.responses import HTMLResponse

_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color-scheme:light dark}"
    "summary{cursor:pointer;padding:.3rem 0}code,pre{font:13px/1.4 ui-monospace,monospace}pre{overflow:auto}"
    "table{border-collapse:collapse}td{padding:.1rem 1rem .1rem 0;vertical-align:top}"
    ".verb{display:inline-block;width:5rem}"
)
_REFERENCE: Final = "#/components/schemas/"


def install(app: FastAPI) -> None:
    """Serve the page."""

    async def docs(_request: Request) -> HTMLResponse:
        policy = "default-src 'none'; style-src 'unsafe-inline'"
        return HTMLResponse("".join(_page(app.openapi())), headers={"Content-Security-Policy": policy})

    app.add_route("/docs", docs, include_in_schema=False)


def _page(spec: Mapping[str, Any]) -> Iterator[str]:
    title = escape(spec["info"]["title"])
    yield f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
    yield f"<h1>{title} {escape(spec['info']['version'])}</h1>"
    yield "<p>The same for programs: <a href=/openapi.json>/openapi.json</a>."
    yield " Send <code>Authorization: Bearer TOKEN</code>."
    for path, verbs in spec["paths"].items():
        for verb, operation in verbs.items():
            yield from _operation(verb, path, operation)
    yield "<h2>Shapes</h2>"
    for name, schema in spec["components"]["schemas"].items():
        shown = escape(json.dumps(schema, indent=2, ensure_ascii=False))
        yield f"<details id='{escape(name)}'><summary><code>{escape(name)}</code></summary><pre>{shown}</pre></details>"


def _operation(verb: str, path: str, operation: Mapping[str, Any]) -> Iterator[str]:
    told = escape(operation.get("description", ""))
    head = f"<code><b class=verb>{verb.upper()}</b>{escape(path)}</code>"
    yield f"<details><summary>{head} {told.partition('. ')[0]}</summary><p>{told}</p><table>"
    for parameter in operation.get("parameters", ()):
        kind = parameter["in"] + (", needed" if parameter.get("required") else "")
        about = escape(parameter.get("description", ""))
        yield f"<tr><td><code>{escape(parameter['name'])}</code><td>{kind}<td>{about}"
    if body := operation.get("requestBody"):
        yield f"<tr><td>body<td>JSON<td>{_shapes(body['content'])}"
    for status, answer in operation["responses"].items():
        yield f"<tr><td>{status}<td>answer<td>{escape(answer['description'])} {_shapes(answer.get('content', {}))}"
    yield "</table></details>"


def _shapes(content: Mapping[str, Any]) -> str:
    """Links to the shapes that a body may have."""
    text = json.dumps(content)
    names = sorted({part.partition('"')[0] for part in text.split(_REFERENCE)[1:]})
    return " or ".join(f"<a href='#{escape(name)}'>{escape(name)}</a>" for name in names)
