"""`/api/v1/notices`: incidents with their deliveries, and the addresses to which users get them."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from master_service.api.protocol.auth import PermittedRoute, TheCaller, TheMaster, User
from master_service.api.protocol.dry_run import DryRun
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.policy import notice_formats
from master_service.policy.incidents import Kind, Notice
from master_service.policy.notice_formats import Channel, State
from master_service.policy.permissions import Role
from master_service.services.master import Master
from master_service.store.notices import NoticeQuery

router = APIRouter(prefix="/notices", tags=["notices"], responses=RESPONSES)
acks = APIRouter(prefix="/notices", tags=["notices"], responses=RESPONSES, route_class=IdempotentRoute)
contacts = APIRouter(
    prefix="/users", tags=["contacts"], responses=RESPONSES | responses(422), route_class=IdempotentRoute
)
# Not an IdempotentRoute: a stored answer must have no secret.
secret = APIRouter(prefix="/users", tags=["contacts"], responses=RESPONSES, route_class=PermittedRoute)
_TEST_GAP: Final = timedelta(seconds=30)


class DeliveryView(BaseModel):
    """The delivery of a notice to one user. Times are UTC."""

    user: str
    channel: Channel
    state: State
    attempts: int
    next_try_at: datetime | None = Field(description="null: there is no further try")
    delivered_at: datetime | None
    problem: str = Field(description="the problem of the last try; empty: none")


class NoticeView(BaseModel):
    """One incident. Times are UTC."""

    id: int
    at: datetime
    kind: Kind
    owner: str = Field(description="the user that it is for; empty: the administrators")
    owner_id: str = Field(description="id of that user's account")
    uuid: str = Field(description="of the VM; empty: it is not about one VM")
    name: str
    text: str
    acknowledged_at: datetime | None
    acknowledged_by: str = Field(description="the account that acknowledged it; empty: none did")


class SentNoticeView(NoticeView):
    """One incident with its deliveries. Users see only their own."""

    deliveries: list[DeliveryView]


class ContactView(BaseModel):
    """The addresses to which a user gets notices."""

    email: str = Field(description="empty: no mail")
    email_pending: str = Field(description="gets notices instead once the code that was mailed there is confirmed")
    webhook_url: str = Field(description="empty: no webhook")
    problem: str = Field(description="why nothing is sent to the e-mail address; empty: nothing is known")


class NewContactView(ContactView):
    """The addresses after a change."""

    webhook_secret: str | None = Field(description="signs the posted notices; shown only once; null: no new one")


class PatchContact(BaseModel):
    """A change of the addresses; omitted fields stay."""

    model_config = ConfigDict(strict=True, extra="forbid")

    email: Annotated[str, AfterValidator(notice_formats.email_address)] | None = Field(
        None,
        description="empty: no mail; used after a code that is mailed there, or at once if an administrator sets it",
    )
    webhook_url: Annotated[str, AfterValidator(notice_formats.webhook_url)] | None = Field(
        None, description="notices are posted there, signed with a new secret; empty: no webhook"
    )

    @model_validator(mode="after")
    def _says_something(self) -> PatchContact:
        if self.email is None and self.webhook_url is None:
            raise ValueError("nothing to change: give email or webhook_url")
        return self


class Acknowledge(BaseModel):
    """The notices that somebody has read or takes care of."""

    model_config = ConfigDict(strict=True, extra="forbid")

    ids: list[Annotated[int, Field(ge=1, le=2**62)]] = Field([], max_length=1000)
    all: bool = Field(False, description="all that the caller sees")

    @model_validator(mode="after")
    def _names_some(self) -> Acknowledge:
        if bool(self.ids) == self.all:
            raise ValueError("give ids, or all")
        return self


class Acknowledged(BaseModel):
    """The notices that were acknowledged by this request, newest first."""

    dry_run: bool
    notices: list[NoticeView]


class VerifyEmail(BaseModel):
    """The code in a mail to the pending address."""

    model_config = ConfigDict(strict=True, extra="forbid")

    code: str = Field(min_length=1, max_length=64)


@router.get("")
async def list_(  # noqa: PLR0913, PLR0917 - the filters
    master: TheMaster,
    caller: TheCaller,
    response: Response,
    vm: Annotated[str | None, Query(max_length=255, description="only of this VM: its name or uuid")] = None,
    kind: Annotated[list[Kind] | None, Query(description="only of these kinds")] = None,
    acknowledged: Annotated[bool | None, Query(description="only those that are acknowledged, or are not")] = None,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[SentNoticeView]:
    """List notices, the newest first. Users see their own."""
    store = master.context.store.notices
    query = NoticeQuery(only=caller.only_id, vm=vm, kinds=kind or (), acknowledged=acknowledged, before=before)
    found = await store.newest(query, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    sent: dict[int, list[DeliveryView]] = {notice.id: [] for notice in found}
    for one in await store.progress(sent, caller.only_name):
        fields = asdict(one)
        sent[fields.pop("notice_id")].append(DeliveryView(**fields))
    return [SentNoticeView(**asdict(notice), deliveries=sent[notice.id]) for notice in found]


@acks.post("/ack", responses=responses(422))
async def acknowledge(body: Acknowledge, master: TheMaster, caller: TheCaller, user: User, dry: DryRun) -> Acknowledged:
    """Acknowledge notices. Users acknowledge their own; a notice is acknowledged once, for all who see it."""
    ids = None if body.all else body.ids
    found = await master.context.store.notices.acknowledge(ids, caller.only_id, user, master.context.clock())
    return Acknowledged(dry_run=dry, notices=[notice_view(notice) for notice in found])


@contacts.get("/{name}/contact")
async def contact(name: str, master: TheMaster) -> ContactView:
    """Show the addresses to which a user gets notices."""
    return await _contact(master, name)


@secret.patch("/{name}/contact", responses=responses(429))
async def set_contact(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    name: str, body: PatchContact, master: TheMaster, caller: TheCaller, user: User, response: Response, dry: DryRun
) -> NewContactView:
    """Change the addresses. Only this answer has the secret of a new `webhook_url`; a dry run creates none.

    A new `email` of anybody but an administrator is mailed a code, and is used when the code comes back.
    """
    verified = caller.role is Role.ADMIN
    secret = await master.accounts.set_contact(name, body.email, body.webhook_url, user, verified=verified)
    response.headers["Cache-Control"] = "no-store"
    view = await _contact(master, name)
    return NewContactView(**view.model_dump(), webhook_secret=None if dry else secret)


@contacts.post("/{name}/contact/verify")
async def verify(name: str, body: VerifyEmail, master: TheMaster, user: User, dry: DryRun) -> ContactView:
    """Use the pending address from now on, by the code that was mailed to it."""
    del dry  # it has put this call into a unit of work
    await master.context.store.accounts.verify_email(name, body.code, user, master.context.clock())
    return await _contact(master, name)


@contacts.post("/{name}/contact/test", status_code=202, responses=responses(429))
async def test(name: str, master: TheMaster, user: User, dry: DryRun) -> NoticeView:
    """Send a test notice; `GET /notices` shows its delivery."""
    del dry  # it has put this call into a unit of work
    return notice_view(await master.context.store.notices.try_out(name, user, master.context.clock(), _TEST_GAP))


def notice_view(notice: Notice) -> NoticeView:
    """Return the view of a notice."""
    return NoticeView(**asdict(notice))


async def _contact(master: Master, name: str) -> ContactView:
    found = await master.context.store.notices.contact(name)
    silent = bool(found.email or found.email_pending) and not master.context.settings.smtp_host
    return ContactView(
        email=found.email,
        email_pending=found.email_pending,
        webhook_url=found.webhook_url,
        problem=notice_formats.NO_MAIL if silent else "",
    )
