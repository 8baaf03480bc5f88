"""Who is asking: the bearer token of each request."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from master_service.errors import Unauthorised
from master_service.master import Master

_BEARER = HTTPBearer(auto_error=False, description="A token of a user; the administrator's is in `admin_token_file`.")


def master_of(request: Request) -> Master:
    """The master behind this application."""
    master: Master = request.app.state.master
    return master


TheMaster = Annotated[Master, Depends(master_of)]


async def user_of(
    master: TheMaster, credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(_BEARER)]
) -> str:
    """The name of the user whose token was sent. Raises Unauthorised."""
    if credentials is None:
        raise Unauthorised("This needs a token, and the request has none.")
    user = await master.parts.store.people.owner_of(credentials.credentials)
    if user is None:
        raise Unauthorised("The token that was sent belongs to nobody.")
    return user


User = Annotated[str, Depends(user_of)]
