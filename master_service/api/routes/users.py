"""`/api/v1/users` and `/api/v1/tokens`. A token is shown once, when it is created."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, model_validator

from master_service.api.protocol.auth import AnyActor, PermittedRoute, TheCaller, TheMaster, User
from master_service.api.protocol.dry_run import DryRun
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import Text
from master_service.policy import accounts
from master_service.policy.accounts import Account, Token, TokenRequest
from master_service.policy.permissions import Role, Scope

users = APIRouter(prefix="/users", tags=["users"], responses=RESPONSES | responses(422), route_class=IdempotentRoute)
tokens = APIRouter(prefix="/tokens", tags=["tokens"], responses=RESPONSES | responses(422), route_class=IdempotentRoute)
# Not an IdempotentRoute where a token is created: a stored answer must have no secret.
secret = APIRouter(responses=RESPONSES, route_class=PermittedRoute)

_STRICT = ConfigDict(strict=True, extra="forbid")


def _password(value: SecretStr) -> SecretStr:
    accounts.validate_password(value.get_secret_value())
    return value


Name = Annotated[str, AfterValidator(accounts.validate_name)]
NewPassword = Annotated[SecretStr, AfterValidator(_password)]
TheRole = Annotated[Role, Field(strict=False)]
NewLimit = Annotated[int, Field(ge=0)] | Literal["usual"] | None
Scopes = Annotated[set[Annotated[Scope, Field(strict=False)]] | None, Field(strict=False, min_length=1)]
"""A JSON list: strict would require a Python set."""


class CreateUser(BaseModel):
    """A new user."""

    model_config = _STRICT

    name: Name
    role: TheRole = Role.USER
    password: NewPassword | None = Field(None, description="default: this user can only use tokens")


class Quota(BaseModel):
    """An amount of each resource; null is unlimited."""

    model_config = _STRICT

    vms: int | None = Field(None, ge=0)
    cpus: int | None = Field(None, ge=0)
    mem_mib: int | None = Field(None, ge=0)
    disk_mib: int | None = Field(None, ge=0, description="virtual sizes, as far as they are known")


class PatchQuota(BaseModel):
    """A change of limits: null is unlimited, `usual` the limit of the settings; omitted ones stay."""

    model_config = _STRICT

    vms: NewLimit = None
    cpus: NewLimit = None
    mem_mib: NewLimit = None
    disk_mib: NewLimit = None


class QuotaView(BaseModel):
    """The usage and the limits of one user."""

    used: Quota
    limits: Quota


class PatchUser(BaseModel):
    """A change of a user by an administrator; omitted fields stay."""

    model_config = _STRICT

    role: TheRole | None = None
    disabled: bool | None = Field(None, description="true: their tokens and password are rejected")
    password: NewPassword | None = Field(None, description="ends their sessions")
    quota: PatchQuota | None = Field(None, description="changes the given limits alone")

    @model_validator(mode="after")
    def _says_something(self) -> PatchUser:
        if not self.changes():
            raise ValueError("nothing to change")
        return self

    def changes(self) -> dict[str, Any]:
        """Return the changes as plain values."""
        given = self.model_dump(exclude_unset=True)
        return {key: _plain(value) for key, value in given.items() if value is not None and value != {}}


class SetPassword(BaseModel):
    """A new password of the caller."""

    model_config = _STRICT

    old_password: SecretStr = Field(max_length=accounts.MAX_PASSWORD)
    new_password: NewPassword


class Login(BaseModel):
    """A user's password for a token."""

    model_config = _STRICT

    user: str = Field(max_length=63)
    password: SecretStr = Field(max_length=accounts.MAX_PASSWORD)
    scopes: Scopes = Field(None, description="read, operate, console, accounts; default: all")
    expires_in_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="default: the setting session_s")
    label: Text = Field("", max_length=63)


class CreateToken(BaseModel):
    """A token for a program."""

    model_config = _STRICT

    label: Text = Field(min_length=1, max_length=63, description="its purpose")
    scopes: Scopes = Field(None, description="a part of the caller's scopes; default: all of them")
    expires_in_s: float | None = Field(None, gt=0, allow_inf_nan=False, description="default: the setting token_s")


class UserView(BaseModel):
    """One user. Times are UTC."""

    id: str = Field(description="never given again, unlike the name")
    name: str
    role: Role
    disabled: bool
    has_password: bool
    locked_until: datetime | None = Field(
        description="from an address that tried too many wrong passwords, none is accepted before"
    )
    vms: int = Field(description="VMs that they own")
    created_at: datetime


class TokenView(BaseModel):
    """One token, without its secret."""

    id: str
    user: str
    kind: str = Field(description="session: of a login; token: for a program; settings: of admin_token_file")
    label: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None = Field(description="to the minute")
    revoked_at: datetime | None


class NewTokenView(TokenView):
    """A new token with its secret, which is shown only once."""

    token: str


@users.post("", status_code=201, responses={200: {"model": UserView, "description": "The result of a dry run"}})
async def create(body: CreateUser, master: TheMaster, user: User, response: Response, dry: DryRun) -> UserView:
    """Create a user."""
    password = body.password.get_secret_value() if body.password else None
    account = await master.accounts.create_user(body.name, body.role, password, user)
    if dry:
        response.status_code = 200
    else:
        response.headers["Location"] = f"/api/v1/users/{body.name}"
    return _user(account, {})


@users.get("")
async def list_(master: TheMaster, caller: TheCaller) -> list[UserView]:
    """List the users that the caller may see, by name."""
    locked = master.accounts.locked_until()
    accounts_ = await master.context.store.accounts.accounts(caller.only_name)
    return [_user(account, locked) for account in accounts_]


@users.get("/{name}")
async def show(name: str, master: TheMaster) -> UserView:
    """Show one user; `me` is the caller."""
    return _user(await master.accounts.user(name), master.accounts.locked_until())


@users.get("/{name}/quota")
async def quota(name: str, master: TheMaster) -> QuotaView:
    """Show the usage and the limits of a user."""
    used, limits = await master.context.store.accounts.quota(name, master.context.settings.quota)
    return QuotaView(used=Quota(**asdict(used)), limits=Quota(**limits))


@users.patch("/{name}")
async def patch(name: str, body: PatchUser, master: TheMaster, user: User, dry: DryRun) -> UserView:
    """Change the role or password of a user, disable or enable them. Disabling ends their sessions."""
    del dry  # it has put this call into a unit of work
    return _user(await master.accounts.change_user(name, body.changes(), user), master.accounts.locked_until())


@users.put("/{name}/password", status_code=204)
async def set_password(name: str, body: SetPassword, master: TheMaster, user: User) -> None:
    """Change one's own password. Ends every session, also this one; tokens for programs stay.

    Has no `dry_run`, because each try of a password counts.
    """
    old, new = body.old_password.get_secret_value(), body.new_password.get_secret_value()
    await master.accounts.set_own_password(name, old, new, user)


@users.delete("/{name}", status_code=204)
async def delete(name: str, master: TheMaster, user: User, dry: DryRun) -> None:
    """Delete a user and their tokens. Refused while they own VMs."""
    del dry  # as above
    await master.context.store.accounts.remove(name, user, master.context.clock())


@secret.post("/users/{name}/tokens", status_code=201, tags=["users"])
async def create_token(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    name: str, body: CreateToken, master: TheMaster, caller: TheCaller, user: User, response: Response
) -> NewTokenView:
    """Create a token for a program, with at most the scopes of the caller's token."""
    token, secret = await master.accounts.create_token(name, _request(body), caller.scopes, user)
    return _new(response, token, secret)


@secret.post("/tokens", status_code=201, tags=["tokens"], responses=responses(429))
async def login(body: Login, master: TheMaster, actor: AnyActor, response: Response) -> NewTokenView:
    """Log in: create a token for a user's password. Needs no token."""
    token, secret = await master.accounts.login(body.user, body.password.get_secret_value(), _request(body), actor)
    return _new(response, token, secret)


@tokens.get("")
async def list_tokens(master: TheMaster, caller: TheCaller) -> list[TokenView]:
    """List the tokens that the caller may see, newest first, and ended ones for a while."""
    return [_token(token) for token in await master.context.store.tokens.tokens(caller.only_name)]


@tokens.get("/{token_id}")
async def show_token(token_id: str, master: TheMaster) -> TokenView:
    """Show one token; `current` is the caller's."""
    found = await master.context.store.tokens.token(token_id)
    assert found is not None  # noqa: S101 - `permitted` has found it
    return _token(found)


@tokens.delete("/{token_id}", status_code=204)
async def revoke(token_id: str, master: TheMaster, user: User, dry: DryRun) -> None:
    """Revoke a token; `current` logs out."""
    del dry  # as above
    await master.context.store.tokens.revoke(token_id, user, master.context.clock())


def _request(body: Login | CreateToken) -> TokenRequest:
    return TokenRequest(label=body.label, scopes=body.scopes, for_s=body.expires_in_s)


def _plain(value: Any) -> Any:
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return value.value if isinstance(value, Role) else value


def _user(account: Account, locked: Mapping[str, datetime]) -> UserView:
    return UserView(
        id=account.id,
        name=account.name,
        role=account.role,
        disabled=account.disabled,
        has_password=account.has_password,
        locked_until=locked.get(account.name),
        vms=account.vms,
        created_at=account.created_at,
    )


def _token(token: Token) -> TokenView:
    return TokenView(
        id=token.id,
        user=token.user,
        kind=token.kind,
        label=token.label,
        scopes=sorted(token.scopes),
        created_at=token.created_at,
        expires_at=token.expires_at,
        last_used_at=token.last_used_at,
        revoked_at=token.revoked_at,
    )


def _new(response: Response, token: Token, secret: str) -> NewTokenView:
    response.headers["Location"] = f"/api/v1/tokens/{token.id}"
    response.headers["Cache-Control"] = "no-store"
    return NewTokenView(**_token(token).model_dump(), token=secret)
