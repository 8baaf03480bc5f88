"""`/api/v1/workers`: list, show, enroll, drain and fence the hypervisor hosts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Response
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from master_service.api.protocol.auth import TheMaster, User
from master_service.api.protocol.dry_run import DryRun, DryRunResponse, describe_change
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.etag import put_etag
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import VMView, WorkerView, worker_view
from master_service.api.routes.vm_actions import view
from master_service.core.errors import NotFound
from master_service.policy.accounts import validate_name
from master_service.services.master import Master

router = APIRouter(tags=["workers"], responses=RESPONSES, route_class=IdempotentRoute)


WorkerId = Annotated[str, Path(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,254}$", description="its minion id")]


class Fence(BaseModel):
    """The confirmation for fencing a worker."""

    model_config = ConfigDict(strict=True, extra="forbid")

    i_have_fenced: Annotated[
        str, Field(max_length=255, description="the worker's id again, to confirm that it is certainly switched off")
    ]


class Enrollment(BaseModel):
    """The key of a worker, and where its consoles are."""

    model_config = ConfigDict(strict=True, extra="forbid")

    fingerprint: Annotated[
        str, Field(max_length=64, description="as `saltern-worker fingerprint` prints it on the worker")
    ]
    api_url: Annotated[
        str | None, Field(max_length=2048, description="the only address of its worker API; null: as it is")
    ] = None


class Adoption(BaseModel):
    """The owner of a VM that is adopted."""

    model_config = ConfigDict(strict=True, extra="forbid")

    owner: Annotated[
        str,
        Field(max_length=63, description="name of the account that the VM will belong to"),
        AfterValidator(validate_name),
    ]


class SaltView(BaseModel):
    """The profile of the Salt master: `dedicated` or `shared`."""

    chosen: str = Field(description="`salt_profile` in the settings of the gate")
    in_force: str = Field(description="as the gate measured it: whether the Salt master refuses other functions")


class WorkerChange(BaseModel):
    """A worker after a change, or after the change of a dry run."""

    dry_run: bool
    message: str
    moved: list[str] = Field([], description="uuids of VMs that start again on other workers")
    worker: WorkerView


@router.get("/workers")
async def list_(master: TheMaster) -> list[WorkerView]:
    """List all workers, and the minions that wait to be enrolled, by id."""
    return [worker_view(worker, master.context.clock()) for worker in await master.context.store.queries.workers()]


@router.get("/salt", responses=responses(503))
async def salt(master: TheMaster) -> SaltView:
    """Show whether the Salt master serves Saltern alone, as the gate's settings say and as it measures now."""
    profile = await master.context.salt.profile()
    return SaltView(chosen=profile.chosen, in_force=profile.in_force)


@router.get("/workers/{worker_id}")
async def show(worker_id: str, master: TheMaster) -> WorkerView:
    """Show one worker."""
    return await _view(master, worker_id)


@router.post("/workers/{worker_id}/enroll", responses=responses(422))
async def enroll(worker_id: WorkerId, body: Enrollment, master: TheMaster, user: User, dry: DryRun) -> WorkerChange:
    """Make a minion a worker: the master believes what is signed with this key in its name, and nothing else.

    Compare the fingerprint with the output of `saltern-worker fingerprint` on the worker before.
    """
    await master.vms.enroll(worker_id, body.fingerprint, body.api_url, user)
    return await _change(master, worker_id, f"{worker_id} is enrolled.", dry=dry)


@router.post("/workers/{worker_id}/unenroll", responses=responses(422))
async def unenroll(worker_id: str, master: TheMaster, user: User, dry: DryRun) -> WorkerChange:
    """Believe nothing in the name of a worker any more. Its VMs keep their last status, and it gets no commands."""
    await master.vms.unenroll(worker_id, user)
    return await _change(master, worker_id, f"{worker_id} is not enrolled any more.", dry=dry)


@router.post("/workers/{worker_id}/drain", responses=responses(422))
async def drain(worker_id: str, master: TheMaster, user: User, dry: DryRun) -> WorkerChange:
    """Place no new VMs on a worker. Its VMs stay until users shut them down or destroy them."""
    await master.vms.drain(worker_id, user)
    return await _change(master, worker_id, f"{worker_id} gets no new VMs.", dry=dry)


@router.post("/workers/{worker_id}/undrain", responses=responses(422))
async def undrain(worker_id: str, master: TheMaster, user: User, dry: DryRun) -> WorkerChange:
    """Place VMs again on a worker that was drained or fenced."""
    await master.vms.undrain(worker_id, user)
    return await _change(master, worker_id, f"{worker_id} gets VMs again.", dry=dry)


@router.post("/workers/{worker_id}/fence", responses=responses(422))
async def fence(worker_id: str, body: Fence, master: TheMaster, user: User, dry: DryRun) -> WorkerChange:
    """Start the VMs of a worker that is CERTAINLY SWITCHED OFF on other workers, from their last saves or their images.

    If the worker still runs, its VMs then run twice and save to the same URI. Refused while the worker answers.
    """
    moved = await master.vms.fence(worker_id, body.i_have_fenced, user)
    message = f"{worker_id} is fenced; {len(moved)} of its VMs move to other workers."
    return await _change(master, worker_id, message, dry=dry, moved=moved)


@router.post(
    "/workers/{worker_id}/vmachines/{uuid}/adopt",
    status_code=201,
    responses={200: {"model": DryRunResponse, "description": "The result of a dry run"}, **responses(422, 503)},
)
async def adopt(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    worker_id: WorkerId,
    uuid: str,
    body: Adoption,
    master: TheMaster,
    user: User,
    response: Response,
    dry: DryRun,
) -> VMView | DryRunResponse:
    """Make a VM that was started past the master a VM of the master, with an owner. It goes on as it is.

    The worker is asked for its present state first. Refused if a VM has its name, if its parameters have secrets, or if
    it exceeds the quota of the owner.
    """
    vm = await master.adoption.adopt(worker_id, uuid, body.owner, user, dry=dry)
    if dry:
        response.status_code = 200
        return await describe_change(master, None, vm)
    response.headers["Location"] = f"/api/v1/vmachines/{vm.uuid}"
    put_etag(response, vm)
    return view(master, vm)


async def _change(
    master: Master, worker_id: str, message: str, *, dry: bool, moved: list[str] | None = None
) -> WorkerChange:
    worker = await _view(master, worker_id)
    shown = f"Nothing was changed. The result would be: {message}" if dry else message
    return WorkerChange(dry_run=dry, message=shown, moved=moved or [], worker=worker)


async def _view(master: Master, worker_id: str) -> WorkerView:
    for worker in await master.context.store.queries.workers():
        if worker.id == worker_id:
            return worker_view(worker, master.context.clock())
    raise NotFound(f"There is no worker {worker_id!r}.", "`saltern workers` shows those that ever answered.")
