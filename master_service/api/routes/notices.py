"""`/api/v1/notices`: what went wrong by itself, once each; and where its owners are told of it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from master_service.api.protocol.auth import TheCaller, TheMaster, User
from master_service.api.protocol.dry_run import DryRun
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.policy import notice_formats
from master_service.policy.incidents import Kind, Notice
from master_service.policy.notice_formats import Channel, State
from master_service.store.notices import Contact

router = APIRouter(prefix="/notices", tags=["notices"], responses=RESPONSES)
contacts = APIRouter(
    prefix="/users", tags=["contacts"], responses=RESPONSES | responses(422), route_class=IdempotentRoute
)
# Not RepeatableRoute: an answer that is kept must hold no secret.
secret = APIRouter(prefix="/users", tags=["contacts"], responses=RESPONSES)
_TEST_GAP: Final = timedelta(seconds=30)


class DeliveryView(BaseModel):
    """How far a notice is on its way to one user. Times are UTC."""

    user: str
    channel: Channel
    state: State
    attempts: int
    next_try_at: datetime | None = Field(description="null: nothing more is tried")
    delivered_at: datetime | None
    problem: str = Field(description="of the last try; empty: none")


class NoticeView(BaseModel):
    """One incident. Times are UTC."""

    id: int
    at: datetime
    kind: Kind
    owner: str = Field(description="whom it is for; empty: the administrators")
    uuid: str = Field(description="of the VM; empty: it is about no single VM")
    name: str
    text: str


class SentNoticeView(NoticeView):
    """One incident, and how far it is on its way to people: users see their own alone."""

    deliveries: list[DeliveryView]


class ContactView(BaseModel):
    """Where somebody is told of what went wrong."""

    email: str = Field(description="empty: no mail is sent")
    webhook_url: str = Field(description="empty: nothing is posted")


class NewContactView(ContactView):
    """The same after a change."""

    webhook_secret: str | None = Field(
        description="signs what is posted; told now and never again; null: there is no new one"
    )


class PatchContact(BaseModel):
    """What is to be changed; what is left out stays."""

    model_config = ConfigDict(strict=True, extra="forbid")

    email: Annotated[str, AfterValidator(notice_formats.email_address)] | None = Field(
        None, description="empty: no mail"
    )
    webhook_url: Annotated[str, AfterValidator(notice_formats.webhook_url)] | None = Field(
        None, description="notices are posted there, signed with a new secret; empty: nowhere"
    )

    @model_validator(mode="after")
    def _says_something(self) -> PatchContact:
        if self.email is None and self.webhook_url is None:
            raise ValueError("nothing to change: give email or webhook_url")
        return self


@router.get("")
async def list_(
    master: TheMaster,
    caller: TheCaller,
    response: Response,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[SentNoticeView]:
    """The newest first; users see those that are for them."""
    store = master.context.store.notices
    found = await store.newest(caller.only, before, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    sent: dict[int, list[DeliveryView]] = {notice.id: [] for notice in found}
    for one in await store.progress(sent, caller.only):
        told = asdict(one)
        sent[told.pop("notice_id")].append(DeliveryView(**told))
    return [SentNoticeView(**asdict(notice), deliveries=sent[notice.id]) for notice in found]


@contacts.get("/{name}/contact")
async def contact(name: str, master: TheMaster) -> ContactView:
    """Where a user is told of what went wrong."""
    return _contact(await master.context.store.notices.contact(name))


@secret.patch("/{name}/contact")
async def set_contact(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    name: str, body: PatchContact, master: TheMaster, user: User, response: Response, dry: DryRun
) -> NewContactView:
    """Change it. Each new `webhook_url` gets a new secret, which this answer alone has; with dry_run none."""
    secret = await master.accounts.set_contact(name, body.email, body.webhook_url, user)
    response.headers["Cache-Control"] = "no-store"
    view = _contact(await master.context.store.notices.contact(name))
    return NewContactView(**view.model_dump(), webhook_secret=None if dry else secret)


@contacts.post("/{name}/contact/test", status_code=202, responses=responses(429))
async def test(name: str, master: TheMaster, user: User, dry: DryRun) -> NoticeView:
    """Send a notice there that says nothing else; `GET /notices` shows what became of it."""
    del dry  # it has put all of this into a transaction of its own
    return notice_view(await master.context.store.notices.try_out(name, user, master.context.clock(), _TEST_GAP))


def notice_view(notice: Notice) -> NoticeView:
    """A notice as the API shows it."""
    return NoticeView(**asdict(notice))


def _contact(found: Contact) -> ContactView:
    return ContactView(email=found.email, webhook_url=found.webhook_url)
