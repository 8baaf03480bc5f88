"""`/api/v1/workers`: the hypervisor hosts."""

from __future__ import annotations

from fastapi import APIRouter, Depends

from master_service.api.access import TheMaster, user_of
from master_service.api.problems import RESPONSES
from master_service.api.shapes import WorkerView, worker_view
from master_service.errors import NotFound

router = APIRouter(prefix="/workers", tags=["workers"], dependencies=[Depends(user_of)], responses=RESPONSES)


@router.get("")
async def list_(master: TheMaster) -> list[WorkerView]:
    """All workers that ever answered, by id."""
    return [worker_view(worker, master.parts.clock()) for worker in await master.parts.store.reading.workers()]


@router.get("/{worker_id}")
async def show(worker_id: str, master: TheMaster) -> WorkerView:
    """One worker."""
    for worker in await master.parts.store.reading.workers():
        if worker.id == worker_id:
            return worker_view(worker, master.parts.clock())
    raise NotFound(f"There is no worker {worker_id!r}.", "`saltern workers` shows those that ever answered.")
