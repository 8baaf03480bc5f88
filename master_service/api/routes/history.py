"""`/vmachines/{id}/history` (what became of a VM) and `/plan` (what the pusher would do now, and why)."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from master_service.api.protocol.auth import TheMaster
from master_service.api.protocol.errors import RESPONSES
from master_service.planning.dry_run import NOTHING, dry_run
from master_service.planning.planner import DecisionKind
from master_service.store.history import Fact
from master_service.store.queries import promised

router = APIRouter(tags=["history"], responses=RESPONSES)


class EntryView(BaseModel):
    """One change of one fact about a VM."""

    id: int
    at: datetime
    fact: Fact = Field(description="wanted: by a user; push: what a worker was told, or answered; real: a report")
    actor: str = Field(description="the user or daemon that wished; the worker that was told, or that told")
    before: str = Field(description="what was wanted, or the worker's word, until then")
    after: str = Field(description="what is wanted, the command, or the worker's word, from then on")
    message: str = Field(description="the verb of a wish; what came of a command; the worker's message")
    generation: int


class PlanView(BaseModel):
    """One VM that is not as wanted."""

    uuid: str
    name: str
    kind: DecisionKind
    why: str
    worker: str | None = Field(description="who would be told, or is being waited for")
    command: str | None
    due: datetime | None = Field(description="when it is looked at again, where that is known")


@router.get("/vmachines/{id_or_name}/history")
async def history(
    id_or_name: str,
    master: TheMaster,
    response: Response,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the page before")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EntryView]:
    """What became of a VM, the newest first: each change of what is wanted, of commands sent, of what is real."""
    vm = await master.vms.get(id_or_name)
    found = await master.context.store.history.of(vm.uuid, before, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    return [EntryView(**asdict(entry)) for entry in found]


@router.get("/plan")
async def plan(master: TheMaster) -> list[PlanView]:
    """What the pusher would do now about each VM that is not as wanted, and why; the others are left out."""
    parts = master.context
    now, settings = parts.clock(), parts.settings
    candidates = await parts.store.queries.candidates()
    found = []
    for vm in await parts.store.queries.vms():
        foreseen = dry_run(vm, candidates.values(), now, settings)
        if foreseen.worker in candidates and foreseen.worker != vm.desired.worker and foreseen.command:
            spec = vm.desired.spec
            candidates[foreseen.worker] = promised(candidates[foreseen.worker], spec.cpu_count, spec.mem_size)
        if foreseen.kind is not DecisionKind.NOTHING or foreseen.message != NOTHING:
            found.append(
                PlanView(
                    uuid=vm.uuid,
                    name=vm.desired.name,
                    kind=foreseen.kind,
                    why=foreseen.message,
                    worker=foreseen.worker,
                    command=foreseen.command,
                    due=foreseen.due,
                )
            )
    return found
