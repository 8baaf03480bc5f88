"""Return every error as application/problem+json: type, title, status, detail, code, hint, and invalid fields."""

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

from master_service.core.errors import BadRequest, BodyTooLarge, Busy, MasterError, TooMany
from master_service.db.engine import classify_database_error
from worker_service.contract.uri_secrets import shown as without_secrets
from worker_service.contract.words import refusal

log = structlog.get_logger()
_SECRET: Final = ("password", "token", "secret", "webhook")
"""Fields whose values no answer repeats, because clients and proxies log answers."""

_MOST_FIELDS: Final = 20
"""Invalid fields that one answer names."""

_LONGEST_SHOWN: Final = 100
_JSON_IS_BAD: Final = "json_invalid"
MEDIA_TYPE: Final = "application/problem+json"


class ProblemDetails(BaseModel):
    """An error. `code` is for programs, `detail` says what is wrong and why, `hint` what to do."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    hint: str = ""
    errors: list[FieldError] = []


class FieldError(BaseModel):
    """One invalid field."""

    field: str
    message: str


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the documentation of errors that a route may answer."""
    return {status: {"model": ProblemDetails, "description": HTTPStatus(status).phrase} for status in statuses}


def described(spec: dict[str, Any]) -> dict[str, Any]:
    """Correct the errors in an OpenAPI document, and make its summaries sentences.

    FastAPI gives errors the media type of the route's success, and documents a 422 where this API answers 400. It makes
    summaries from the names of the functions.
    """
    for verbs in spec["paths"].values():
        for operation in verbs.values():
            sentence = operation.get("description", operation["summary"]).partition(". ")[0]
            operation["summary"] = sentence.strip(".").replace("`", "")  # a summary has no markup
            answers = operation["responses"]
            for status, answer in list(answers.items()):
                shapes = {content.get("schema", {}).get("$ref", "") for content in answer.get("content", {}).values()}
                if _FASTAPIS in shapes:
                    del answers[status]
                elif _PROBLEM in shapes:
                    answer["content"] = {MEDIA_TYPE: {"schema": {"$ref": _PROBLEM}}}
    for unused in ("HTTPValidationError", "ValidationError"):
        spec["components"]["schemas"].pop(unused, None)
    return spec


_PROBLEM: Final = "#/components/schemas/ProblemDetails"
_FASTAPIS: Final = "#/components/schemas/HTTPValidationError"
RESPONSES: Final = responses(400, 401, 403, 404, 409, 503, 507)


def install(app: FastAPI) -> None:
    """Install the handlers that give all errors the same shape."""
    app.add_exception_handler(MasterError, _on_master_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_error)
    app.add_exception_handler(SQLAlchemyError, _on_database_error)
    app.add_exception_handler(Exception, _on_bug)


async def _on_master_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, MasterError)  # noqa: S101 - registered for it alone
    return as_answer(error)


def as_answer(error: MasterError) -> JSONResponse:
    """Return the response of an error."""
    fields = error.fields if isinstance(error, BadRequest) else ()
    problem = ProblemDetails(
        title=HTTPStatus(error.http_status).phrase,
        status=error.http_status,
        detail=str(error),
        code=error.code,
        hint=error.hint,
        errors=[FieldError(field=field, message=message) for field, message in fields],
    )
    return _answer(problem, {"Retry-After": str(error.retry_after_s)} if isinstance(error, TooMany) else None)


async def _on_validation_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)  # noqa: S101 - registered for it alone
    return await _on_master_error(request, BadRequest([_field_error(found) for found in error.errors()[:_MOST_FIELDS]]))


def busy() -> JSONResponse:
    """Return the answer to a caller for whom there is no connection."""
    return as_answer(Busy("The master answers as many callers as it can."))


def body_too_large() -> BodyTooLarge:
    """Return the error for a body that is not read to its end."""
    return BodyTooLarge("The body is larger than any request needs.")


def _field_error(found: dict[str, Any]) -> tuple[str, str]:
    """Return one error of pydantic as (field, sentence)."""
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
    if found["type"] == "string_type" and given is not None:
        return field, refusal("it", given).removesuffix(".")
    if isinstance(given, str):
        given = without_secrets(given) if len(given) < _LONGEST_SHOWN else None
    is_shown = isinstance(given, str | int | float | bool) and len(repr(given)) < _LONGEST_SHOWN
    return field, message + (f" (given: {given!r})" if is_shown else "")


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
        detail="The master failed. Your request is not the cause.",
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
        media_type=MEDIA_TYPE,
    )
