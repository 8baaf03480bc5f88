"""`?dry_run=true`: make the change in a transaction that is rolled back, and answer with its result."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Annotated, Any, Final

from fastapi import Depends, Query, Request
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from master_service.api.protocol.auth import TheMaster
from master_service.api.protocol.schemas import VMView, vm_view
from master_service.planning.dry_run import changes, dry_run
from master_service.planning.vm import VM
from master_service.services.master import Master


class Change(BaseModel):
    """One field that would change."""

    field: str
    before: Any
    after: Any


class DryRunResponse(BaseModel):
    """The result of a change, which was not made."""

    dry_run: bool = True
    message: str = Field(description="what would be done, as a sentence")
    worker: str | None = Field(description="the worker that would get a command, or null")
    command: str | None = Field(description="the command that it would get, or null")
    changes: list[Change] = Field(description="changes of the desired state")
    vmachine: VMView


_BOOL: Final = TypeAdapter(bool)


def is_dry_run(request: Request) -> bool:
    """Return whether the request asks for a dry run, by any spelling of `true`. Only `DryRun` begins one."""
    try:
        return _BOOL.validate_python(request.query_params.get("dry_run", False))
    except ValidationError:  # `DryRun` refuses it
        return False


async def _dry_run(
    master: TheMaster,
    dry_run: Annotated[bool, Query(description="only answer with the result; change nothing")] = False,
) -> AsyncIterator[bool]:
    if not dry_run:
        yield False
        return
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
    result = dry_run(after, (await context.store.queries.candidates()).values(), now, context.settings)
    return DryRunResponse(
        message=result.message,
        worker=result.worker,
        command=result.command,
        changes=[Change(field=field, before=old, after=new) for field, old, new in changes(before, after)],
        vmachine=vm_view(after, now, context.settings),
    )
