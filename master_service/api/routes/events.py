"""`/api/v1/events`: changes of VMs as server-sent events. Clients read the list after each (re)connect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from master_service.api.protocol.auth import Caller, TheCaller, TheMaster
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.schemas import vm_view
from master_service.api.routes.notices import notice_view
from master_service.core.errors import BadRequest
from master_service.services.master import Master

router = APIRouter(prefix="/events", tags=["events"], responses=RESPONSES)
_LOOK_S: Final = 5.0
"""Without changes, the pause between two checks of the token and of notices."""
_RESUMED: Final = 1000
"""The most events for a reader that reconnects. After more changes it has to read the list."""


def _last_id(
    last_event_id: Annotated[
        str | None, Header(max_length=32, description="the id of the last event: the stream continues after it")
    ] = None,
) -> int | None:
    if not last_event_id:
        return None
    if not (last_event_id.isascii() and last_event_id.isdecimal() and len(last_event_id) < 19):
        raise BadRequest([("Last-Event-ID", "give the id of an event of this stream, unchanged")])
    return int(last_event_id)


async def _slot(master: TheMaster, caller: TheCaller) -> AsyncIterator[None]:
    with master.streams.taken(caller.name):
        yield


@router.get("", response_class=EventSourceResponse, dependencies=[Depends(_slot)], responses=responses(429))
async def stream(
    master: TheMaster, caller: TheCaller, last_received: Annotated[int | None, Depends(_last_id)]
) -> AsyncIterator[ServerSentEvent]:
    """Stream an event `vmachine` for each changed VM, with its state at that time. It may come twice, or late.

    An event `notice` comes for each notice of the caller, as in `GET /notices`. The stream ends with the token.
    With `Last-Event-ID` it continues after that event. An event `reset` means that too many changes have happened since
    then: read the list. A comment comes every 15 s without other events.
    """
    history = master.context.store.history
    with master.context.changes.subscribe() as subscription:
        last, noticed = await history.last(), await master.context.store.notices.last()
        yield ServerSentEvent(comment="connected")
        if last_received is not None:
            missed = await history.since(last_received, _RESUMED)
            if missed is None:
                yield ServerSentEvent(
                    event="reset", data={"reason": "too many changes have happened since; read the list"}
                )
            async for event in _vm_events(master, caller, missed or (), last):
                yield event
        while True:
            changed = await subscription.get(_LOOK_S)
            # Check the token before sending anything.
            now = master.context.clock()
            if not await master.context.store.tokens.still_opens(caller.token_id, caller.account_id, caller.role, now):
                return
            last = await history.last()
            async for event in _vm_events(master, caller, changed, last):
                yield event
            for notice in await master.context.store.notices.since(noticed, _RESUMED):
                noticed = notice.id
                if caller.sees(notice.owner_id):
                    yield ServerSentEvent(event="notice", data=notice_view(notice))


async def _vm_events(
    master: Master, caller: Caller, uuids: Collection[str], last: int
) -> AsyncIterator[ServerSentEvent]:
    for vm in await master.context.store.queries.vms(uuids) if uuids else ():
        if caller.sees(vm.desired.owner_id):
            view = vm_view(vm, master.context.clock(), master.context.settings)
            yield ServerSentEvent(event="vmachine", data=view, id=str(last))
