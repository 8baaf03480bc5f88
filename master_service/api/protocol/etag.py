"""ETag and If-Match: a change names the version of the VM that it changes. RFC 9110, 13.1.1, and RFC 6585, 3."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Header, Response

from master_service.core.errors import BadRequest, PreconditionRequired
from master_service.planning.vm import VM

_ANY: Final = "*"
_Header = Annotated[
    str | None, Header(description="the ETag of the last GET: change only this version; `*`: any version")
]


def _optional(if_match: _Header = None) -> int | None:
    return None if if_match is None or if_match == _ANY else _version(if_match)


def _required(if_match: _Header = None) -> int | None:
    if if_match is None:
        raise PreconditionRequired(
            "This change needs If-Match: another request may have changed the VM since you read it."
        )
    return _optional(if_match)


IfMatch = Annotated[int | None, Depends(_optional)]
"""The version that a change expects, or None for any."""

IfMatchRequired = Annotated[int | None, Depends(_required)]
"""The same for changes that need the header. Raises PreconditionRequired without it."""


def put_etag(response: Response, vm: VM) -> None:
    """Add the version of the desired state to the response."""
    response.headers["ETag"] = f'"{vm.desired.version}"'


def _version(if_match: str) -> int:
    version = if_match.removeprefix("W/").strip('"')
    # isdigit accepts digits of other scripts, and int() accepts signs, blanks and underscores.
    if not (version.isascii() and version.isdecimal() and len(version) < 10):
        raise BadRequest([("If-Match", 'give the ETag of the VM as it was read, such as "3"')])
    return int(version)
