"""The one JSON shape of all failures of the worker API."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from worker_service.contract import HTTP_STATUS, Code


def failure(
    message: str, code: Code, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """Return the contract's failure reply, with the HTTP status of its code or a more specific one."""
    body = {"success": False, "message": message, "code": code.value}
    return JSONResponse(body, status or HTTP_STATUS[code], headers)
