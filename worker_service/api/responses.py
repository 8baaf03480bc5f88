"""What the facade answers when it does not do what it was asked: one shape, whatever the reason."""

from __future__ import annotations

from collections.abc import Mapping

from fastapi.responses import JSONResponse

from worker_service.contract import HTTP_STATUS, Code


def failure(
    message: str, code: Code, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    """The contract's reply of failure under the HTTP status of its code, or another one where HTTP has a better."""
    body = {"success": False, "message": message, "code": code.value}
    return JSONResponse(body, status or HTTP_STATUS[code], headers)
