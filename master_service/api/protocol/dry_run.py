"""`?dry_run=true`: make the change in a transaction that is rolled back, and answer with its result.

If the result is a start, the worker is asked what it would do: what it would fetch, and what it refuses.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from dataclasses import replace
from typing import Annotated, Any, Final

import msgspec
from fastapi import Depends, Query, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from master_service.api.protocol.auth import TheCaller, TheMaster
from master_service.api.protocol.schemas import VMView, vm_view
from master_service.planning.dry_run import WorkerPlan, changes, dry_run, question_about_changes
from master_service.planning.vm import VM
from master_service.runtime.worker_plans import ask_plan
from master_service.services.master import Master


class Change(BaseModel):
    """One field that would change."""

    field: str
    before: Any
    after: Any


class PlannedImage(BaseModel):
    """One image of a start."""

    disk: str
    uri: str
    cached: bool = Field(description="whether the worker has it already")
    size: int | None = Field(description="bytes; null: its source does not say")


class WorkerPlanView(BaseModel):
    """What a worker says about a start, without starting."""

    worker: str
    fits: bool | None = Field(description="whether it would start; null: not known, and the message says why")
    message: str
    code: str = Field(description="why it would refuse: `policy`, `no_room`, `fetch_failed`, …")
    bytes_to_fetch: int | None = Field(description="bytes of images that are not in its cache")
    images: list[PlannedImage]


class DryRunResponse(BaseModel):
    """The result of a change, which was not made."""

    dry_run: bool = True
    message: str = Field(description="what would be done, as a sentence")
    worker: str | None = Field(description="the worker that would get a command, or null")
    command: str | None = Field(description="the command that it would get, or null")
    changes: list[Change] = Field(description="changes of the desired state")
    plan: WorkerPlanView | None = Field(None, description="the worker's own plan, if the command is a start")
    vmachine: VMView


_BOOL: Final = TypeAdapter(bool)
_ASKS: ContextVar[str] = ContextVar("asks", default="")
"""The caller for whom a dry run may ask workers, or ""."""


def is_dry_run(request: Request) -> bool:
    """Return whether the request asks for a dry run, by any spelling of `true`. Only `DryRun` begins one."""
    try:
        return _BOOL.validate_python(request.query_params.get("dry_run", False))
    except ValidationError:  # `DryRun` refuses it
        return False


async def _dry_run(
    master: TheMaster,
    caller: TheCaller,
    dry_run: Annotated[bool, Query(description="only answer with the result; change nothing")] = False,
    ask_workers: Annotated[bool, Query(description="in a dry run: ask the worker what a start would do")] = True,
) -> AsyncIterator[bool]:
    if not dry_run:
        yield False
        return
    _ASKS.set(caller.name if ask_workers else "")
    async with master.context.store.database.unit_of_work(dry_run=True):
        yield True


DryRun = Annotated[bool, Depends(_dry_run, scope="function")]
"""Whether to change nothing. If true, the unit of work around the handler is rolled back, without effects."""


async def dry_run_response(master: Master, id_or_name: str, change: Callable[[], Awaitable[VM]]) -> DryRunResponse:
    """Return the result of `change` for a VM."""
    before = await master.vms.get(id_or_name)
    return await describe_change(master, before, await change())


async def describe_change(master: Master, before: VM | None, after: VM) -> DryRunResponse:
    """Return the result for a changed VM, or for a new one if `before` is None."""
    context = master.context
    now = context.clock()
    candidates = await context.store.queries.candidates()
    result = dry_run(after, candidates.values(), now, context.settings)
    chosen = candidates[result.worker].worker if result.worker in candidates else None
    response = DryRunResponse(
        message=result.message,
        worker=result.worker,
        command=result.command,
        changes=[Change(field=field, before=old, after=new) for field, old, new in changes(before, after)],
        vmachine=vm_view(replace(after, worker=after.worker or chosen), now, context.settings),
    )
    if result.command == "start" and result.worker in candidates and (caller := _ASKS.get()):
        await context.store.database.end_dry_run()
        with master.waits.taken(caller):
            response.plan = plan_view(await ask_plan(context, after, candidates[result.worker].worker))
        response.message += f"; {response.plan.message}"
    elif before is not None and (question := question_about_changes(before, after)) and (caller := _ASKS.get()):
        await context.store.database.end_dry_run()
        with master.waits.taken(caller):
            plan = await ask_plan(context, question, candidates[str(question.desired.worker)].worker)
        if plan.refuses:  # otherwise its sentence is about a start
            response.plan = plan_view(plan)
            response.message += f"; {plan.message}"
    return response


def plan_view(plan: WorkerPlan) -> WorkerPlanView:
    """Return the view of a worker's plan."""
    return WorkerPlanView(
        worker=plan.worker,
        fits=plan.fits,
        message=plan.message,
        code=plan.code,
        bytes_to_fetch=plan.bytes_to_fetch,
        images=[PlannedImage(**msgspec.structs.asdict(image)) for image in plan.images],
    )
