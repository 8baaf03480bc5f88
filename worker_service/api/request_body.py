"""Read the parameters of a call from its query, form or JSON, with a limit on the size."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from fastapi import Request
from starlette.formparsers import MultiPartException
from starlette.requests import ClientDisconnect

from worker_service.contract import Code
from worker_service.core.errors import BadRequest
from worker_service.operations import validation

BODY_BYTES: Final = 64 << 10


async def read(request: Request) -> dict[str, Any]:
    """Return the parameters of a call, each of which is given once: in the query or in the body. Raises BadRequest."""
    pairs: list[tuple[str, Any]] = [*request.query_params.multi_items(), *await _body_pairs(request)]
    validation.require_once(name for name, _value in pairs)
    return dict(pairs)


def query(request: Request, *names: str) -> dict[str, str]:
    """Return the parameters of a call that takes only these, in its query. Raises BadRequest."""
    pairs = request.query_params.multi_items()
    validation.require_once(name for name, _value in pairs)
    if unknown := sorted({name for name, _value in pairs} - set(names)):
        raise BadRequest(f"Unknown parameter: {', '.join(unknown)[:200]}. Known are {' and '.join(names)}.")
    return dict(pairs)


async def _body_pairs(request: Request) -> Iterable[tuple[str, Any]]:
    body = await _body(request)
    if not body:
        return ()
    kinds = request.headers.getlist("content-type")
    if len(kinds) > 1:
        raise BadRequest("The body has two types. Send one header Content-Type.")
    kind = "".join(kinds).partition(";")[0].strip().lower()
    if kind == "application/json":
        return _object(body).items()
    if kind in ("application/x-www-form-urlencoded", "multipart/form-data"):
        return await _form(request)
    raise BadRequest(f"A body of type {kind[:80] or 'unknown'} is not supported. Send JSON or a form.")


def too_large() -> BadRequest:
    """Return the error for a body beyond `BODY_BYTES`, which nothing here reads to its end."""
    return BadRequest(f"The body is larger than {BODY_BYTES >> 10} KiB. Send less.", code=Code.TOO_LARGE)


async def _body(request: Request) -> bytes:
    try:
        return await request.body()
    except ClientDisconnect:
        raise BadRequest("The caller disconnected before its request was complete. It had no effect.") from None


def _object(body: bytes) -> dict[str, Any]:
    sent = validation.decode_json(body, "The body")
    if not isinstance(sent, dict):
        raise BadRequest("The body must be a JSON object of parameters.")
    return sent


async def _form(request: Request) -> list[tuple[str, Any]]:
    try:
        async with request.form() as form:
            pairs = form.multi_items()
    except (MultiPartException, UnicodeDecodeError, ValueError) as err:
        raise BadRequest(f"The form cannot be read: {err}. Correct it, or send JSON.") from err
    if any(not isinstance(value, str) for _name, value in pairs):
        raise BadRequest("The form has a file, and no parameter is one. Send its URI.")
    return list(pairs)
