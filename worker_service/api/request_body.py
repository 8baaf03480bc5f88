"""Read the parameters of a call from its query, form or JSON, with a limit on the size."""

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
    """Return the parameters of a call; the body wins over the query. Raises BadRequest."""
    parameters: dict[str, Any] = dict(request.query_params)
    body = await _body(request)
    if not body:
        return parameters
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "application/json":
        return {**parameters, **_object(body)}
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return {**parameters, **await _form(request)}
    raise BadRequest(f"A body of type {kind or 'unknown'} is not supported. Send JSON or a form.")


def too_large() -> BadRequest:
    """Return the error for a body beyond `BODY_BYTES`, which nothing here reads to its end."""
    return BadRequest(f"The body is larger than {BODY_BYTES >> 10} KiB. Send less.", code=Code.TOO_LARGE)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise BadRequest("The caller disconnected before its request was complete. It had no effect.") from None


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
