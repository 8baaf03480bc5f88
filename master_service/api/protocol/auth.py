"""Authentication and authorization of every request: the only place that enforces `policy.permissions`.

`permitted` is a dependency of the application itself, so that no router can omit it. That alone is too late for a
request with a body, which FastAPI reads before all dependencies: `PermittedRoute` asks before.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final

import structlog
from fastapi import Depends, Request, Response
from fastapi.requests import HTTPConnection
from fastapi.routing import APIRoute
from fastapi.security import HTTPBearer
from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import ClientDisconnect

from http_bounds.guard import MOST_BODY
from master_service.api.protocol import request_id
from master_service.core.errors import BadRequest, Forbidden, NotFound, Unauthorised
from master_service.policy.audit import ANONYMOUS, Actor, Interface
from master_service.policy.permissions import (
    PATH_PARAMETERS,
    ROUTES,
    Reach,
    Role,
    Rule,
    Scope,
    Subject,
    Verdict,
    verdict,
)
from master_service.services.master import Master
from master_service.store.tokens import Bearer, is_stale

log = structlog.get_logger()
PREFIX: Final = "/api/v1"
PUBLIC_BODY_BYTES: Final = 16 << 10
"""The largest body of a caller without a token."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Caller:
    """The sender of a request, and how far their role reaches over its route."""

    account_id: str
    name: str
    role: Role
    scopes: frozenset[Scope]
    token_id: str
    reach: Reach

    def sees(self, owner_id: str) -> bool:
        """Return whether this route may show objects of the account with this id to the caller."""
        return self.reach is Reach.ALL or owner_id == self.account_id

    @property
    def only_id(self) -> str | None:
        """Return the id of the only account whose objects a list may show, or None for all."""
        return None if self.reach is Reach.ALL else self.account_id

    @property
    def only_name(self) -> str | None:
        """Return the name of that account, for objects that are deleted with their account, or None for all."""
        return None if self.reach is Reach.ALL else self.name


class _Bearer(HTTPBearer):
    """Reads the header, also of a websocket."""

    async def __call__(self, request: HTTPConnection) -> Any:
        """Return the token of the request, or None."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        return token.strip() if scheme.lower() == "bearer" and token.strip() else None


_BEARER = _Bearer(
    auto_error=False, scheme_name="token", description="A user's token. The administrator's is in `admin_token_file`."
)


def master_of(connection: HTTPConnection) -> Master:
    """Return the master of this application."""
    master: Master = connection.app.state.master
    return master


TheMaster = Annotated[Master, Depends(master_of)]


class PermittedRoute(APIRoute):
    """A route that reads the body of a request after its permission. Each route that changes something is one."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return FastAPI's handler, which reads the body first, behind the permission."""
        handle = super().get_route_handler()

        async def handler(request: Request) -> Response:
            await permitted(request, master_of(request), await _BEARER(request))
            if not request.state.authenticated:
                request.scope[MOST_BODY] = PUBLIC_BODY_BYTES
            try:
                await request.body()  # FastAPI takes it from here, and would make a 400 of every error
            except ClientDisconnect:
                raise BadRequest([("body", "did not arrive to its end: nothing was changed")]) from None
            return await handle(request)

        return handler


async def permitted(
    connection: HTTPConnection, master: TheMaster, token: Annotated[str | None, Depends(_BEARER)]
) -> None:
    """Refuse requests that `ROUTES` does not allow. Raises Unauthorised, Forbidden, NotFound."""
    route = route_key(connection)
    rule = ROUTES.get(route)
    if getattr(connection.state, "authenticated", False):
        return
    connection.state.authenticated = False
    if rule is not None and rule.public:
        return
    bearer = await _bearer(connection, master, token, route)
    try:
        await _admit(connection, master, rule, route, bearer)
    except Forbidden as err:
        await master.denial_log.record(_actor(connection), route, str(err))
        raise
    connection.state.authenticated = True


async def _admit(connection: HTTPConnection, master: Master, rule: Rule | None, route: str, bearer: Bearer) -> None:
    """Put the caller into the connection's state. Raises Forbidden, NotFound."""
    name, role, scopes = bearer.name, bearer.role, bearer.token.scopes
    caller = Caller(
        account_id=bearer.account_id,
        name=name,
        role=role,
        scopes=scopes,
        token_id=bearer.token.id,
        reach=Reach.NONE,
    )
    connection.state.caller = caller
    if rule is None:
        raise Forbidden(f"{route} has no rule about permissions.", "This is a fault of this master: report it.")
    if rule.scope not in scopes:
        raise Forbidden(f"The token does not have the scope {rule.scope}.", "Use a token that has it.")
    subject = rule.subject
    found = None
    if subject is not None:
        parameter = PATH_PARAMETERS[subject]
        given = connection.path_params[parameter]
        found = await _FINDERS[subject](master, caller, given)
    decision = verdict(rule, role, own=found is not None and found[1])
    if subject is not None:
        if found is not None and decision is Verdict.HIDDEN:
            await master.denial_log.record(_actor(connection), route, f"{found[0]} belongs to another user")
        if found is None or decision is Verdict.HIDDEN:
            raise _absent(subject, given)
        # The handler gets the durable id (a VM's uuid): until it runs, another object may take the name.
        connection.path_params[parameter] = found[0]
    if decision is not Verdict.ALLOWED:
        raise Forbidden(f"The role {role} may not {route}.")
    connection.state.caller = replace(caller, reach=rule.reach(role))


def route_key(connection: HTTPConnection) -> str:
    """Return the key of the connection's route in `ROUTES`."""
    scope = connection.scope
    method = scope["method"] if scope["type"] == "http" else scope["type"].upper()
    return f"{method} {scope['route'].path.removeprefix(PREFIX)}"


def described(spec: dict[str, Any]) -> dict[str, Any]:
    """Correct an OpenAPI document: public routes need no token. FastAPI knows only that each route reads one."""
    for path, verbs in spec["paths"].items():
        for method, operation in verbs.items():
            if (rule := ROUTES.get(f"{method.upper()} {path.removeprefix(PREFIX)}")) and rule.public:
                del operation["security"]
    return spec


async def caller_of(connection: HTTPConnection) -> Caller:
    """Return the caller. Raises Unauthorised on a public route, which has none."""
    caller: Caller | None = getattr(connection.state, "caller", None)
    if caller is None:
        raise Unauthorised("This needs a token, and the request has none.")
    return caller


TheCaller = Annotated[Caller, Depends(caller_of)]


async def actor_of(connection: HTTPConnection) -> Actor:
    """Return the actor for the audit."""
    return _actor(connection)


AnyActor = Annotated[Actor, Depends(actor_of)]
"""The actor on a public route."""


async def user_of(caller: TheCaller, actor: AnyActor) -> Actor:
    """Return the user as the actor for the audit. Raises Unauthorised on a public route."""
    del caller
    return actor


User = Annotated[Actor, Depends(user_of)]


def _actor(connection: HTTPConnection) -> Actor:
    caller: Caller | None = getattr(connection.state, "caller", None)
    interface: Interface = "cli" if connection.headers.get("User-Agent", "").startswith("saltern-cli") else "api"
    return Actor(
        name=caller.name if caller else ANONYMOUS,
        account_id=caller.account_id if caller else "",
        interface=interface,
        request_id=request_id.current(),
        address=connection.client.host if connection.client else "",
    )


async def _bearer(connection: HTTPConnection, master: Master, token: str | None, route: str) -> Bearer:
    """Return the user of the token. Raises Unauthorised."""
    actor = _actor(connection)
    if token is None:
        await master.denial_log.record(actor, route, "no token")
        raise Unauthorised("This needs a token, and the request has none.")
    now = master.context.clock()
    found = await master.context.store.tokens.bearer(token, now)
    if found is None:
        await master.denial_log.record(actor, route, "an unknown token")
        raise Unauthorised("The token is unknown.")
    if found.fault:
        await master.denial_log.record(
            replace(actor, name=found.name, account_id=found.account_id), route, f"token {found.token.id} {found.fault}"
        )
        raise Unauthorised(f"The token {found.fault}.", "Log in again, or use another token.")
    if is_stale(found.token, now):
        try:
            await master.context.store.tokens.touch(found.token.id, now)
        except SQLAlchemyError as err:  # a full disk must not lock users out
            log.warning("token_use_not_recorded", token=found.token.id, error=type(err).__name__)
    return found


def _absent(subject: Subject, given: str) -> NotFound:
    """Return the same error for a missing object and for one that the caller may not see."""
    match subject:
        case Subject.VM:
            return NotFound(f"There is no VM {given!r}.")
        case Subject.USER:
            return NotFound(f"There is no user {given!r}.", "`saltern users` shows those that you may see.")
        case Subject.TOKEN:
            return NotFound(f"There is no token {given!r}.", "`saltern tokens` shows those that you may see.")
        case Subject.OPERATION:
            return NotFound(f"There is no operation {given!r}.", "GET /operations lists those that you may see.")


async def _find_vm(master: Master, caller: Caller, id_or_name: str) -> tuple[str, bool] | None:
    vm = await master.context.store.queries.vm(id_or_name)
    return (vm.uuid, vm.desired.owner_id == caller.account_id) if vm else None


async def _find_user(master: Master, caller: Caller, name: str) -> tuple[str, bool] | None:
    account = await master.context.store.accounts.account(caller.name if name == "me" else name)
    return (account.name, account.id == caller.account_id) if account else None


async def _find_token(master: Master, caller: Caller, token_id: str) -> tuple[str, bool] | None:
    token = await master.context.store.tokens.token(caller.token_id if token_id == "current" else token_id)  # noqa: S105
    return (token.id, token.user == caller.name) if token else None


async def _find_operation(master: Master, caller: Caller, operation_id: str) -> tuple[str, bool] | None:
    if not (operation_id.isascii() and operation_id.isdecimal() and len(operation_id) < 19):
        return None
    entry = await master.context.store.operations.one(int(operation_id))
    vm = await master.context.store.queries.vm(entry.uuid) if entry else None
    return (operation_id, vm.desired.owner_id == caller.account_id) if vm else None


_FINDERS: Final[Mapping[Subject, Callable[[Master, Caller, str], Awaitable[tuple[str, bool] | None]]]] = {
    Subject.VM: _find_vm,
    Subject.USER: _find_user,
    Subject.TOKEN: _find_token,
    Subject.OPERATION: _find_operation,
}
"""Functions that return the durable id of the object that a path names and whether it is the caller's, or None."""
