"""`/api/v1/operations`: requested changes of VMs with their outcomes, from the audit and the VMs."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from master_service.api.protocol.auth import TheCaller, TheMaster
from master_service.api.protocol.errors import RESPONSES
from master_service.core.errors import NotFound
from master_service.planning.outcomes import OPEN_OUTCOMES, Outcome
from master_service.planning.status import display_status
from master_service.planning.vm import VM
from master_service.policy.audit import AuditRecord, Interface
from master_service.services.master import Master

router = APIRouter(prefix="/operations", tags=["operations"], responses=RESPONSES)


class OperationView(BaseModel):
    """One requested change of one VM. Times are UTC."""

    id: int = Field(description="the id of its audit entry")
    at: datetime
    verb: str
    uuid: str
    name: str
    owner: str
    actor: str
    interface: Interface
    worker: str | None = Field(description="the VM's worker now")
    jid: str = Field(description="its Salt job; empty: not sent yet, or not needed")
    outcome: Outcome = Field(description="queued, sent, accepted: it continues")
    in_progress: bool = Field(description="it has no outcome yet")
    phase: str | None = Field(description="without an outcome: the VM's status, and what its worker is doing")
    detail: str = Field(description="why it was refused, or why it waits")


@router.get("")
async def list_(  # noqa: PLR0913, PLR0917 - one parameter per filter
    master: TheMaster,
    caller: TheCaller,
    response: Response,
    in_progress: Annotated[
        bool | None, Query(description="true: only those of this page without an outcome; false: the others")
    ] = None,
    vm: Annotated[str | None, Query(max_length=255, description="uuid or name")] = None,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[OperationView]:
    """List changes of the VMs that the caller may see, the newest first."""
    found = await master.context.store.operations.page(caller.only_id, vm, before, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    shown = await _views(master, found)
    return [one for one in shown if in_progress is None or one.in_progress is in_progress]


@router.get("/{operation_id}")
async def show(operation_id: str, master: TheMaster) -> OperationView:
    """Show one operation."""
    line = await master.context.store.operations.one(int(operation_id))
    for view in await _views(master, [line] if line else []):
        return view
    raise NotFound(f"There is no operation {operation_id!r}.", "GET /operations lists those that you may see.")


async def _views(master: Master, lines: list[AuditRecord]) -> list[OperationView]:
    vms = {vm.uuid: vm for vm in await master.context.store.queries.vms({line.uuid for line in lines})} if lines else {}
    return [_view(master, line, vms[line.uuid]) for line in lines if line.uuid in vms]


def _view(master: Master, line: AuditRecord, vm: VM) -> OperationView:
    shown = display_status(vm, master.context.clock(), master.context.settings)
    in_progress = Outcome(line.outcome) in OPEN_OUTCOMES
    progress = vm.observed.status.progress if vm.observed.status else None
    phase = f"{shown.status.value}: {progress.phase}" if progress else shown.status.value
    return OperationView(
        id=line.id,
        at=line.at,
        verb=line.verb,
        uuid=line.uuid,
        name=line.name,
        owner=vm.desired.owner,
        actor=line.actor,
        interface=cast("Interface", line.interface),
        worker=vm.desired.worker,
        jid=line.jid,
        outcome=Outcome(line.outcome),
        in_progress=in_progress,
        phase=phase if in_progress else None,
        detail=line.detail or (shown.reason if in_progress else ""),
    )
