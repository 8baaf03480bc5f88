"""`/api/v1/events`: changes of VMs as server-sent events. Clients read the list after each (re)connect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header
from fastapi.sse import EventSourceResponse, ServerSentEvent

from master_service.api.protocol.auth import Caller, TheCaller, TheMaster
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.schemas import vm_view
from master_service.api.protocol.vm_filter import VMFilter, vm_filter
from master_service.api.routes.history import EntryView, entry_fields
from master_service.api.routes.notices import notice_view
from master_service.core.errors import BadRequest
from master_service.planning.vm import VM
from master_service.services.master import Master
from master_service.store.history import HistoryEntry, HistoryReader

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


class ChangeView(EntryView):
    """One entry of the history of a VM, with the VM: the data of an event `change`."""

    uuid: str
    name: str
    owner: str
    worker: str | None
    labels: dict[str, str]


@router.get("", response_class=EventSourceResponse, dependencies=[Depends(_slot)], responses=responses(429))
async def stream(
    master: TheMaster,
    caller: TheCaller,
    last_received: Annotated[int | None, Depends(_last_id)],
    sought: Annotated[VMFilter, Depends(vm_filter)],
) -> AsyncIterator[ServerSentEvent]:
    """Stream what happens to VMs.

    An event `change` comes for each entry in the history of a VM, with a sentence. After `Last-Event-ID` the stream
    continues after that entry. On PostgreSQL some entries before it may come again; their `id` is the same.

    An event `vmachine` comes for each changed VM, with its state at that time. It may come twice, or late. An event
    `notice` comes for each notice of the caller, as in `GET /notices`. The stream ends with the token. An event `reset`
    means that too many changes have happened since then: read the list. A comment comes every 15 s without other
    events.
    """
    history = master.context.store.history
    with master.context.changes.subscribe() as subscription:
        reader, noticed = await HistoryReader.from_now(history), await master.context.store.notices.last()
        yield ServerSentEvent(comment="connected")
        if last_received is not None:
            missed = await history.since(last_received, _RESUMED)
            if missed is None:
                yield ServerSentEvent(
                    event="reset", data={"reason": "too many changes have happened since; read the list"}
                )
            else:
                reader = HistoryReader(history, last_received)
            async for event in _vm_events(master, caller, sought, missed or (), reader):
                yield event
        while True:
            changed = await subscription.get(_LOOK_S)
            # Check the token before sending anything.
            now = master.context.clock()
            if not await master.context.store.tokens.still_opens(caller.token_id, caller.account_id, caller.role, now):
                return
            async for event in _vm_events(master, caller, sought, changed, reader):
                yield event
            for notice in await master.context.store.notices.since(noticed, _RESUMED):
                noticed = notice.id
                if caller.sees(notice.owner_id):
                    yield ServerSentEvent(event="notice", data=notice_view(notice))


async def _vm_events(
    master: Master, caller: Caller, sought: VMFilter, uuids: Collection[str], reader: HistoryReader
) -> AsyncIterator[ServerSentEvent]:
    entries = await reader.read()
    concerned = {*uuids, *(entry.uuid for entry in entries)}
    found = await master.context.store.queries.vms(concerned) if concerned else []
    vms = {vm.uuid: vm for vm in found if caller.sees(vm.desired.owner_id) and sought.fits(vm)}
    for entry in entries:
        vm = vms.get(entry.uuid)
        if vm is not None and sought.fits_then(entry.status, entry.after):
            yield ServerSentEvent(event="change", data=_change_view(entry, vm), id=str(entry.id))
    for uuid in uuids:
        vm = vms.get(uuid)
        if vm is not None and sought.fits_now(vm):
            view = vm_view(vm, master.context.clock(), master.context.settings)
            yield ServerSentEvent(event="vmachine", data=view, id=str(reader.last))


def _change_view(entry: HistoryEntry, vm: VM) -> ChangeView:
    desired = vm.desired
    return ChangeView(
        **entry_fields(entry),
        name=desired.name,
        owner=desired.owner,
        worker=desired.worker,
        labels=dict(desired.labels),
    )
