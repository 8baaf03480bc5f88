"""`/api/v1/audit`: all acts with actor, interface and outcome."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import AwareDatetime, BaseModel, Field

from master_service.api.protocol.auth import TheCaller, TheMaster
from master_service.api.protocol.errors import RESPONSES
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Interface, Kind
from master_service.store.audit import Search

router = APIRouter(prefix="/audit", tags=["audit"], responses=RESPONSES)


class LineView(BaseModel):
    """One act, or one refusal. Times are UTC."""

    id: int
    at: datetime
    actor: str = Field(
        description="`saltern`: this master; `nobody`: without authentication; NAME@WORKER: not through this master"
    )
    actor_id: str = Field(description="id of the actor's account; empty: none of this master")
    interface: Interface = Field(
        description="api, cli, web: as the client says; salt: from Salt's event bus; salt-call, worker-api: on a worker"
    )
    verb: str
    kind: Kind
    uuid: str = Field(description="of a VM; else empty")
    name: str = Field(description="of the VM, user, worker or route; the id of a token")
    generation: int
    outcome: Outcome
    detail: str
    jid: str = Field(description="its Salt job")
    request_id: str = Field(description="X-Request-ID of the request, also in the log")
    address: str


@router.get("")
async def list_(  # noqa: PLR0913, PLR0917 - one parameter per filter
    master: TheMaster,
    caller: TheCaller,
    response: Response,
    actor: Annotated[str | None, Query(max_length=63)] = None,
    interface: Interface | None = None,
    verb: Annotated[str | None, Query(max_length=32)] = None,
    kind: Kind | None = None,
    outcome: Outcome | None = None,
    vm: Annotated[str | None, Query(max_length=255, description="uuid or name")] = None,
    since: AwareDatetime | None = None,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[LineView]:
    """List audit entries, the newest first. Users and viewers see only their own acts."""
    search = Search(
        actor=actor,
        interface=interface,
        verb=verb,
        kind=kind,
        outcome=outcome.value if outcome else None,
        vm=vm,
        since=since,
        before=before,
    )
    found = await master.context.store.audit.page(search, caller.only_id, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    return [LineView(**asdict(line)) for line in found]
