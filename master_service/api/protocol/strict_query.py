"""Refuse changes with unknown query parameters, so that a misspelt `dry_run` changes nothing.

This also refuses a dry run of routes that have no `dry_run`.
"""

from __future__ import annotations

from fastapi import params
from fastapi.dependencies.utils import get_flat_params
from fastapi.requests import HTTPConnection

from master_service.core.errors import BadRequest


async def known(connection: HTTPConnection) -> None:
    """Raise BadRequest for parameters that the route does not have."""
    scope = connection.scope
    if scope["type"] != "http" or scope["method"] in ("GET", "HEAD") or not connection.query_params:
        return
    found = get_flat_params(scope["route"].dependant)
    names = {each.alias for each in found if isinstance(each.field_info, params.Query)}
    if unknown := sorted(connection.query_params.keys() - names):
        raise BadRequest([(name, "is not a parameter of this change: nothing was changed") for name in unknown])
