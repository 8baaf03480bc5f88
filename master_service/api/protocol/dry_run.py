"""`?dry_run=true`: the change itself, in a transaction that is rolled back; the answer says what would come of it."""

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
    """One thing that would be different."""

    field: str
    before: Any
    after: Any


class DryRunResponse(BaseModel):
    """What would happen. Nothing was changed."""

    dry_run: bool = True
    message: str = Field(description="what would be done, in a sentence")
    worker: str | None = Field(description="the worker that would be told; null: none")
    command: str | None = Field(description="the command that it would be told; null: none")
    changes: list[Change] = Field(description="what would be different of what is wanted; empty: nothing")
    vmachine: VMView


_BOOL: Final = TypeAdapter(bool)


def only_rehearsed(request: Request) -> bool:
    """Whether the request asks for a rehearsal, however it spells `true`. Does not begin one: `DryRun` does."""
    try:
        return _BOOL.validate_python(request.query_params.get("dry_run", False))
    except ValidationError:  # which `DryRun` refuses
        return False


async def _dry_run(
    master: TheMaster,
    dry_run: Annotated[bool, Query(description="only say what would happen; change nothing")] = False,
) -> AsyncIterator[bool]:
    if not dry_run:
        yield False
        return
    async with master.context.store.database.unit_of_work(dry_run=True):
        yield True


DryRun = Annotated[bool, Depends(_dry_run, scope="function")]
"""Whether to change nothing. While it is true, all that the handler writes is seen by itself alone."""


async def dry_run_response(master: Master, id_or_name: str, change: Callable[[], Awaitable[VM]]) -> DryRunResponse:
    """What `change` does to a VM."""
    before = await master.vms.get(id_or_name)
    return await told(master, before, await change())


async def told(master: Master, before: VM | None, after: VM) -> DryRunResponse:
    """What becomes of a VM that is changed so; `before` None: it is new."""
    parts = master.context
    now = parts.clock()
    foreseen = dry_run(after, (await parts.store.queries.candidates()).values(), now, parts.settings)
    return DryRunResponse(
        message=foreseen.message,
        worker=foreseen.worker,
        command=foreseen.command,
        changes=[Change(field=field, before=was, after=will) for field, was, will in changes(before, after)],
        vmachine=vm_view(after, now, parts.settings),
    )
