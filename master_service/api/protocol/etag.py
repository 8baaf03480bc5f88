"""ETag and If-Match: a change says which version of a VM it is meant for. RFC 9110, 13.1.1, and RFC 6585, 3."""

from __future__ import annotations

from typing import Annotated, Final

from fastapi import Depends, Header, Response

from master_service.core.errors import BadRequest, PreconditionRequired
from master_service.planning.vm import VM

_ANY: Final = "*"
_Header = Annotated[
    str | None, Header(description="the ETag of the last GET: change only if it is so still; `*`: whatever it is")
]


def _optional(if_match: _Header = None) -> int | None:
    return None if if_match is None or if_match == _ANY else _version(if_match)


def _demanded(if_match: _Header = None) -> int | None:
    if if_match is None:
        raise PreconditionRequired("This changes what somebody else may have changed since you read it.")
    return _optional(if_match)


IfMatch = Annotated[int | None, Depends(_optional)]
"""The version that a change is meant for; None: any."""

IfMatchDemanded = Annotated[int | None, Depends(_demanded)]
"""The same, for changes that must say. Raises PreconditionRequired when the request does not."""


def put_etag(response: Response, vm: VM) -> None:
    """Tell the version of what is wanted of a VM."""
    response.headers["ETag"] = f'"{vm.desired.version}"'


def _version(if_match: str) -> int:
    told = if_match.removeprefix("W/").strip('"')
    # Not isdigit: that takes digits of other scripts, and int() takes signs, blanks and underscores.
    if not (told.isascii() and told.isdecimal() and len(told) < 10):
        raise BadRequest([("If-Match", 'give the ETag of the VM as it was read, such as "3"')])
    return int(told)
