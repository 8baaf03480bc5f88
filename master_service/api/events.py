"""`/api/v1/events`: changes of VMs as server-sent events. A hint: read the list after each (re)connect."""

from __future__ import annotations

from collections.abc import AsyncIterator

from fastapi import APIRouter, Depends
from fastapi.sse import EventSourceResponse, ServerSentEvent

from master_service.api.access import TheMaster, user_of
from master_service.api.shapes import vm_view

router = APIRouter(prefix="/events", tags=["events"], dependencies=[Depends(user_of)])


@router.get("", response_class=EventSourceResponse)
async def stream(master: TheMaster) -> AsyncIterator[ServerSentEvent]:
    """One event `vmachine` for each VM that changed, with the VM as it is then. A change may be told twice, or late."""
    with master.parts.changes.subscribe() as subscription:
        yield ServerSentEvent(comment="connected")
        while True:
            for vm in await master.parts.store.reading.vms(await subscription.take()):
                view = vm_view(vm, master.parts.clock(), master.parts.settings)
                yield ServerSentEvent(event="vmachine", data=view)
