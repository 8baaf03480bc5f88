"""Refuse changes with unknown or doubled parameters, so that a misspelt or contradicted `dry_run` changes nothing.

This also refuses a dry run of routes that have no `dry_run`. Parsers differ in which of two values they take, so a
checker before this master may see the other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.requests import HTTPConnection, Request

from master_service.core.errors import BadRequest


async def known(connection: HTTPConnection) -> None:
    """Raise BadRequest for parameters that the route does not have, and for those that come twice."""
    scope = connection.scope
    if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
        return
    if connection.query_params:
        found = get_flat_params(scope["route"].dependant)
        names = {each.alias for each in found if isinstance(each.field_info, params.Query)}
        if unknown := sorted(connection.query_params.keys() - names):
            raise BadRequest([(name, "is not a parameter of this change: nothing was changed") for name in unknown])
        _require_once(name for name, _value in connection.query_params.multi_items())
    if isinstance(connection, Request) and scope["route"].body_field is not None:
        try:
            json.loads(await connection.body(), object_pairs_hook=_require_distinct)
        except (ValueError, RecursionError):
            return  # the route says what is wrong with it


def _require_distinct(pairs: list[tuple[str, object]]) -> None:
    _require_once(name for name, _value in pairs)


def _require_once(names: Iterable[str]) -> None:
    once: set[str] = set()
    for name in names:
        if name in once:
            raise BadRequest([(name[:80], "is given twice: nothing was changed")])
        once.add(name)
