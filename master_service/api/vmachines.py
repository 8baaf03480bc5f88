"""`/api/v1/vmachines`: create, look at, and change VMs."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Header, Query, Response

from master_service.api.access import TheMaster, User, user_of
from master_service.api.problems import RESPONSES
from master_service.api.shapes import ActionView, CreateVM, ModifyVM, VMView, vm_view
from master_service.errors import BadRequest
from master_service.facts import VM
from master_service.master import Master

router = APIRouter(prefix="/vmachines", tags=["vmachines"], dependencies=[Depends(user_of)], responses=RESPONSES)
Timeout = Annotated[
    float | None,
    Query(ge=0, le=3600, description="seconds to wait for the effect; 0: not at all; default: block_timeout_s"),
]


def _view(master: Master, vm: VM) -> VMView:
    return vm_view(vm, master.parts.clock(), master.parts.settings)


@router.post("", status_code=201)
async def create(body: CreateVM, master: TheMaster, user: User, response: Response) -> VMView:
    """Create a VM and start it. Answers at once, with status `pending`."""
    vm = await master.service.create(body.spec(), user, body.worker)
    response.headers["Location"] = f"/api/v1/vmachines/{vm.uuid}"
    return _view(master, vm)


@router.get("")
async def list_(master: TheMaster) -> list[VMView]:
    """All VMs that are not destroyed, by name."""
    return [_view(master, vm) for vm in await master.parts.store.reading.vms()]


@router.get("/{id_or_name}")
async def show(id_or_name: str, master: TheMaster, response: Response) -> VMView:
    """One VM by uuid or name; by uuid also one that is destroyed."""
    vm = await master.service.get(id_or_name)
    response.headers["ETag"] = f'"{vm.assumed.version}"'
    return _view(master, vm)


@router.patch("/{id_or_name}")
@router.post("/{id_or_name}/modify")
async def modify(
    id_or_name: str,
    body: ModifyVM,
    master: TheMaster,
    user: User,
    if_match: Annotated[
        str | None, Header(description="the ETag, or the version: change only if it is so still")
    ] = None,
) -> VMView:
    """Change where disks are saved when the VM halts, or the CD."""
    vm = await master.service.modify(id_or_name, body.settings(), user, _version(if_match))
    return _view(master, vm)


@router.post("/{id_or_name}/start")
async def start(id_or_name: str, master: TheMaster, user: User) -> ActionView:
    """Start a VM that is off or failed; let one that is suspended run on. Answers at once."""
    return _accepted(master, await master.service.act(id_or_name, "start", user), "It will be started.")


@router.post("/{id_or_name}/shutdown")
async def shutdown(id_or_name: str, master: TheMaster, user: User) -> ActionView:
    """Ask the guest to shut down; its disks are then saved as asked. Answers at once."""
    return _accepted(master, await master.service.act(id_or_name, "shutdown", user), "Its guest will be asked.")


@router.post("/{id_or_name}/suspend", responses={202: {"model": ActionView}})
async def suspend(
    id_or_name: str, master: TheMaster, user: User, response: Response, timeout_s: Timeout = None
) -> ActionView:
    """Pause a VM in memory (virsh: suspend). Blocks until seen, or until the timeout: then 202."""
    return await _blocking(master, id_or_name, "suspend", user, response, timeout_s)


@router.post("/{id_or_name}/resume", responses={202: {"model": ActionView}})
async def resume(
    id_or_name: str, master: TheMaster, user: User, response: Response, timeout_s: Timeout = None
) -> ActionView:
    """Let a suspended VM run on. Blocks until seen, or until the timeout: then 202."""
    return await _blocking(master, id_or_name, "resume", user, response, timeout_s)


@router.post("/{id_or_name}/destroy", responses={202: {"model": ActionView}})
@router.delete("/{id_or_name}", responses={202: {"model": ActionView}})
async def destroy(
    id_or_name: str, master: TheMaster, user: User, response: Response, timeout_s: Timeout = None
) -> ActionView:
    """Discard a VM with its disks; nothing is saved. Not virsh's destroy, which only powers off.

    Blocks until its worker confirms, or until the timeout: then 202. May be asked again.
    """
    return await _blocking(master, id_or_name, "destroy", user, response, timeout_s)


def _accepted(master: Master, vm: VM, message: str) -> ActionView:
    return ActionView(done=None, message=message, vmachine=_view(master, vm))


async def _blocking(  # noqa: PLR0913, PLR0917 - the parameters of three routes
    master: Master, id_or_name: str, verb: str, user: str, response: Response, timeout_s: float | None
) -> ActionView:
    asked = await master.service.act(id_or_name, verb, user)
    limit_s = master.parts.settings.block_timeout_s if timeout_s is None else timeout_s
    vm, done = await master.service.wait(asked.uuid, verb, limit_s)
    view = _view(master, vm)
    if not done:
        response.status_code = 202
    told = f"{verb}: done." if done else f"{verb}: not seen within {limit_s:g} s; it goes on. {view.reason}".strip()
    return ActionView(done=done, message=told, vmachine=view)


def _version(if_match: str | None) -> int | None:
    if if_match is None:
        return None
    try:
        return int(if_match.removeprefix("W/").strip('"'))
    except ValueError as err:
        raise BadRequest([("If-Match", "give the ETag of the VM as it was read")]) from err
