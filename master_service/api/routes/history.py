"""`/vmachines/{id}/history`, and `/plan` with the next actions of the pusher and their reasons."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field

from master_service.api.protocol.auth import TheCaller, TheMaster
from master_service.api.protocol.dry_run import WorkerPlanView, plan_view
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.planning.decision import DecisionKind
from master_service.planning.dry_run import NOTHING, dry_run
from master_service.planning.vm import VM, Worker
from master_service.policy.history_sentences import Fact, sentence
from master_service.runtime.worker_plans import ask_plans
from master_service.store.history import HistoryEntry
from master_service.store.queries import promised

router = APIRouter(tags=["history"], responses=RESPONSES)


class EntryView(BaseModel):
    """One change of one fact about a VM."""

    id: int
    at: datetime
    fact: Fact = Field(description="desired: by a user; dispatch: a command or its answer; observed: a report")
    actor: str = Field(
        description="the user or daemon that changed it; the worker that got the command or sent the report"
    )
    before: str = Field(description="the desired or reported status before")
    after: str = Field(description="the desired or reported status after, or the command")
    message: str = Field(description="the verb of a change; the outcome of a command; the worker's message")
    cause: str = Field(description="why the VM halted, or why the master did this by itself; may be empty")
    status: str = Field(description="the VM's status right after it; empty for entries of version 0.2")
    sentence: str = Field(description="all of this in words")
    generation: int


class PlanView(BaseModel):
    """One VM that is not in its desired state."""

    uuid: str
    name: str
    kind: DecisionKind
    reason: str
    worker: str | None = Field(description="the worker that would get the command, or for which the master waits")
    command: str | None
    due: datetime | None = Field(description="when the master decides again, if known")
    plan: WorkerPlanView | None = Field(None, description="the worker's own plan, if the command is a start")


@router.get("/vmachines/{id_or_name}/history")
async def history(
    id_or_name: str,
    master: TheMaster,
    response: Response,
    before: Annotated[int | None, Query(ge=1, le=2**62, description="X-Next-Cursor of the previous page")] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> list[EntryView]:
    """List changes of the desired state, of commands and of the observed state, the newest first."""
    vm = await master.vms.get(id_or_name)
    found = await master.context.store.history.of(vm.uuid, before, limit)
    if len(found) == limit:
        response.headers["X-Next-Cursor"] = str(found[-1].id)
    return [EntryView(**entry_fields(entry)) for entry in found]


def entry_fields(entry: HistoryEntry) -> dict[str, Any]:
    """Return the fields of the view of an entry."""
    change = (entry.before, entry.after)
    words = sentence(entry.fact, entry.actor, change, entry.message, entry.cause)
    return {**asdict(entry), "sentence": words}


@router.get("/plan", responses=responses(429))
async def plan(master: TheMaster, caller: TheCaller) -> list[PlanView]:
    """List what the pusher would do now about VMs that are not in their desired state, and why.

    The workers of the first starts are asked what they would do.
    """
    context = master.context
    now, settings = context.clock(), context.settings
    candidates = await context.store.queries.candidates()
    found: list[PlanView] = []
    starts: list[tuple[VM, Worker]] = []
    for vm in await context.store.queries.vms():
        result = dry_run(vm, candidates.values(), now, settings)
        if result.worker in candidates and result.worker != vm.desired.worker and result.command:
            spec = vm.desired.spec
            candidates[result.worker] = promised(candidates[result.worker], spec.cpu_count, spec.mem_size)
        if result.command == "start" and result.worker in candidates:
            starts.append((vm, candidates[result.worker].worker))
        if result.kind is not DecisionKind.NOTHING or result.message != NOTHING:
            found.append(
                PlanView(
                    uuid=vm.uuid,
                    name=vm.desired.name,
                    kind=result.kind,
                    reason=result.message,
                    worker=result.worker,
                    command=result.command,
                    due=result.due,
                )
            )
    if starts:
        with master.waits.taken(caller.name):
            plans = await ask_plans(context, starts)
        for view in found:
            view.plan = plan_view(plans[view.uuid]) if view.uuid in plans else None
    return found
