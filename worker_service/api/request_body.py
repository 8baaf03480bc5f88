"""Query, form or JSON: whichever was sent, the same parameters. Small, and within a time."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from fastapi import Request
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from worker_service.contract import Code
from worker_service.core.errors import BadRequest

BODY_BYTES: Final = 64 << 10


async def read(request: Request) -> dict[str, Any]:
    """The parameters of a call; those of the body win over those of the query. Raises BadRequest."""
    parameters: dict[str, Any] = dict(request.query_params)
    body = await _body(request)
    if not body:
        return parameters
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return {**parameters, **_object(body)}
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return {**parameters, **await _form(request)}
    raise BadRequest(f"A body of type {kind or 'unknown'} is not understood. Send JSON or a form.")


async def _body(request: Request) -> bytes:
    """The body, as long as it is small, whatever length it announces; the request keeps it, for a form to be read."""
    too_large = BadRequest(f"The body is larger than {BODY_BYTES >> 10} KiB. Send less.", code=Code.TOO_LARGE)
    length = request.headers.get("content-length", "")
    if length.isdigit() and int(length) > BODY_BYTES:
        raise too_large
    body = b""
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > BODY_BYTES:
                raise too_large
    except ClientDisconnect:
        raise BadRequest("The caller went away before its request was whole. Nothing was done.") from None
    request._body = body  # noqa: SLF001 - where Request.form and Request.body look for what was read already
    return body


def _object(body: bytes) -> dict[str, Any]:
    try:
        sent = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as err:
        raise BadRequest(f"The body is not JSON: {err}. Correct it.") from err
    if not isinstance(sent, dict):
        raise BadRequest("The body must be a JSON object of parameters.")
    return sent


async def _form(request: Request) -> dict[str, Any]:
    try:
        async with request.form() as form:
            return {key: value for key, value in form.items() if isinstance(value, str)}
    except (MultiPartException, UnicodeDecodeError, ValueError) as err:
        raise BadRequest(f"The form cannot be read: {err}. Correct it, or send JSON.") from err
