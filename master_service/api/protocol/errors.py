"""Every error leaves as application/problem+json: type, title, status, detail, code, hint, and the fields at fault."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException

from master_service.core.errors import BadRequest, MasterError
from master_service.db.engine import classify_database_error
from worker_service.contract.uri import shown as without_user

log = structlog.get_logger()
_SECRET: Final = ("password", "token", "secret", "webhook")
"""Fields of which nothing is repeated in an answer: answers are logged by clients and proxies."""

_JSON_IS_BAD: Final = "json_invalid"
_MEDIA_TYPE: Final = "application/problem+json"


class ProblemDetails(BaseModel):
    """An error. `code` is for programs; `detail` says what is wrong and why, `hint` what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    errors: list[FieldError] = []


class FieldError(BaseModel):
    """One field that makes no sense."""

    field: str
    message: str


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What else a route may answer, as problems."""
    return {status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase} for status in statuses}


def described(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI document with the errors as they leave, and with sentences as summaries.

    FastAPI gives errors the media type of the route's success, and a 422 of its own for what is answered with 400 here.
    It makes the summaries from the names of the functions.
    """
    for verbs in spec["paths"].values():
        for operation in verbs.values():
            sentence = operation.get("description", operation["summary"]).partition(". ")[0]
            operation["summary"] = sentence.strip(".").replace("`", "")  # no markup in it
            told = operation["responses"]
            for status, answer in list(told.items()):
                shapes = {content.get("schema", {}).get("$ref", "") for content in answer.get("content", {}).values()}
                if _FASTAPIS in shapes:
                    del told[status]
                elif _PROBLEM in shapes:
                    answer["content"] = {_MEDIA_TYPE: {"schema": {"$ref": _PROBLEM}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        spec["components"]["schemas"].pop(unused, None)
    return spec


_PROBLEM: Final = "#/components/schemas/ProblemDetails"
_FASTAPIS: Final = "#/components/schemas/HTTPValidationError"
RESPONSES: Final = responses(400, 401, 403, 404, 409, 503, 507)


def install(app: FastAPI) -> None:
    """Let all errors leave in the one shape."""
    app.add_exception_handler(MasterError, _on_master_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_master_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MasterError)  # noqa: S101 - registered for it alone
    return as_answer(error)


def as_answer(error: MasterError) -> JSONResponse:
    """An error as it leaves."""
    fields = error.fields if isinstance(error, BadRequest) else ()
    problem = ProblemDetails(
        title=HTTPStatus(error.http_status).phrase,
        status=error.http_status,
        detail=str(error),
        code=error.code,
        hint=error.hint,
        errors=[FieldError(field=field, message=message) for field, message in fields],
    )
    return _answer(problem)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return await _on_master_error(request, BadRequest([_told(found) for found in error.errors()]))


def _told(found: dict[str, Any]) -> tuple[str, str]:
    """One finding of pydantic as (field, sentence)."""
    place = [str(part) for part in found["loc"] if part not in ("body", "query", "path", "header")]
    if found["type"] == _JSON_IS_BAD:
        return "body", "is not JSON"
    field = ".".join(place) or "body"
    message = str(found["msg"]).removeprefix("Value error, ")
    if found["type"] == "extra_forbidden":
        return field, "is not a parameter; /docs lists all of them"
    if found["type"] == "missing":
        return field, "is missing"
    given = None if any(word in field for word in _SECRET) else found.get("input")
    given = without_user(given) if isinstance(given, str) else given
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) and len(repr(given)) < 100 else ""
    return field, f"{message}{shown}"


async def _on_http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)  # noqa: S101 - registered for it alone
    phrase = HTTPStatus(error.status_code).phrase
    problem = ProblemDetails(
        title=phrase,
        status=error.status_code,
        detail=str(error.detail),
        code=phrase.lower().replace(" ", "_"),
        hint="/docs lists every path and method.",
    )
    return _answer(problem, dict(error.headers or {}))


async def _on_database_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, SQLAlchemyError)  # noqa: S101 - registered for it alone
    problem = classify_database_error(error)
    if problem is None:
        return await _on_bug(request, error)
    log.error("database_failed", path=request.url.path, code=problem.code, error=str(getattr(error, "orig", error)))
    return as_answer(problem)


async def _on_bug(request: Request, error: Exception) -> JSONResponse:
    log.error("request_failed", path=request.url.path, exc_info=error)
    problem = ProblemDetails(
        title="Internal Server Error",
        status=500,
        detail="Something went wrong here, not in your request.",
        code="internal",
        hint="The master's log has the details.",
    )
    return _answer(problem)


def _answer(problem: ProblemDetails, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = headers or {}
    if problem.status == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="saltern"'
    return JSONResponse(
        problem.model_dump(exclude_defaults=False),
        status_code=problem.status,
        headers=headers,
        media_type=_MEDIA_TYPE,
    )
