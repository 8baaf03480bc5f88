"""`/api/v1/vmachines/{id}/<verb>`: what is done to VMs. Two verbs answer at once, four wait for what they see."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from master_service.api.protocol.auth import PREFIX, TheMaster, User
from master_service.api.protocol.dry_run import DryRun, DryRunResponse, dry_run_response
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.etag import IfMatch
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import ActionView, VMView, vm_view
from master_service.planning.outcomes import Outcome
from master_service.planning.vm import VM
from master_service.policy.audit import Actor
from master_service.services.master import Master
from master_service.services.vms import LONGEST_BLOCK_S, Operation

router = APIRouter(
    prefix="/vmachines",
    tags=["verbs"],
    responses=RESPONSES | responses(422),
    route_class=IdempotentRoute,
)
Timeout = Annotated[
    float | None,
    Query(
        ge=0,
        le=LONGEST_BLOCK_S,
        allow_inf_nan=False,
        description="seconds to wait for the effect; 0: not at all; default: the setting block_timeout_s",
    ),
]
_LATER: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": ActionView,
        "description": "It goes on: not seen yet",
        "headers": {
            "Location": {"description": "its operation, which tells how far it is", "schema": {"type": "string"}}
        },
    }
}
_AT_ONCE: Final = {**_LATER, 200: {"model": DryRunResponse, "description": "What would happen, with dry_run"}}
_VERSIONED = responses(412)


@router.post("/{id_or_name}/start", status_code=202, responses=_AT_ONCE)
async def start(
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun
) -> ActionView | DryRunResponse:
    """Start a VM that is off or failed; let one that is suspended run on (virsh: start, resume). Answers at once."""
    return await _accepted(master, id_or_name, "start", user, response, "It will be started.", dry=dry)


@router.post("/{id_or_name}/shutdown", status_code=202, responses=_AT_ONCE)
async def shutdown(
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun
) -> ActionView | DryRunResponse:
    """Ask the guest to shut down; its disks are then saved as asked (virsh: shutdown). Answers at once."""
    return await _accepted(master, id_or_name, "shutdown", user, response, "Its guest will be asked.", dry=dry)


@router.post("/{id_or_name}/suspend", responses=_LATER)
async def suspend(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Pause a VM in memory (virsh: suspend). Blocks until seen, or until the timeout: then 202."""
    asked = partial(master.vms.act, id_or_name, "suspend", user)
    return await _blocking(master, id_or_name, "suspend", asked, response, timeout_s, dry=dry)


@router.post("/{id_or_name}/resume", responses=_LATER)
async def resume(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Let a suspended VM run on (virsh: resume). Blocks until seen, or until the timeout: then 202."""
    asked = partial(master.vms.act, id_or_name, "resume", user)
    return await _blocking(master, id_or_name, "resume", asked, response, timeout_s, dry=dry)


@router.post("/{id_or_name}/destroy", responses={**_LATER, **_VERSIONED})
@router.delete("/{id_or_name}", responses={**_LATER, **_VERSIONED}, operation_id="delete_vmachine")
async def destroy(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str,
    master: TheMaster,
    user: User,
    response: Response,
    if_match: IfMatch,
    dry: DryRun,
    timeout_s: Timeout = None,
) -> ActionView | DryRunResponse:
    """Discard a VM with its disks; nothing is saved. Not virsh's destroy, which only powers off.

    Blocks until its worker confirms, or until the timeout: then 202. May be asked again.
    """
    asked = partial(master.vms.act, id_or_name, "destroy", user, if_match)
    return await _blocking(master, id_or_name, "destroy", asked, response, timeout_s, dry=dry)


@router.post("/{id_or_name}/save_retry", responses={**_LATER, **responses(503)})
async def save_retry(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Let its worker try again to save disks that it could not save. Blocks until they are saved, or the timeout.

    409 with the worker's word for it where it refuses, or fails again.
    """
    asked = partial(master.vms.save_retry, id_or_name, user)
    return await _blocking(master, id_or_name, "save_retry", asked, response, timeout_s, dry=dry)


def view(master: Master, vm: VM) -> VMView:
    """One VM as people see it, now."""
    return vm_view(vm, master.context.clock(), master.context.settings)


async def _accepted(  # noqa: PLR0913, PLR0917 - the parameters of two routes
    master: Master, id_or_name: str, verb: str, user: Actor, response: Response, message: str, *, dry: bool
) -> ActionView | DryRunResponse:
    asked = partial(master.vms.act, id_or_name, verb, user)
    if dry:
        response.status_code = 200
        return await dry_run_response(master, id_or_name, _then(asked))
    operation = await asked()
    _goes_on(response, operation)
    return ActionView(done=None, outcome=None, message=message, vmachine=view(master, operation.vm))


async def _blocking(  # noqa: PLR0913, PLR0917 - the parameters of four routes
    master: Master,
    id_or_name: str,
    verb: str,
    asked: Callable[[], Awaitable[Operation]],
    response: Response,
    timeout_s: float | None,
    *,
    dry: bool,
) -> ActionView | DryRunResponse:
    """Ask, wait for the effect, and say what was seen."""
    if dry:
        return await dry_run_response(master, id_or_name, _then(asked))
    operation = await asked()
    limit_s = master.context.settings.block_timeout_s if timeout_s is None else timeout_s
    vm, outcome = await master.vms.wait(operation.vm.uuid, verb, limit_s)
    if outcome is None:
        _goes_on(response, operation)
    shown = view(master, vm)
    told = _told(verb, shown, limit_s, outcome)
    return ActionView(done=outcome is Outcome.DONE, outcome=outcome, message=told, vmachine=shown)


def _then(asked: Callable[[], Awaitable[Operation]]) -> Callable[[], Awaitable[VM]]:
    async def vm() -> VM:
        return (await asked()).vm

    return vm


def _goes_on(response: Response, operation: Operation) -> None:
    response.status_code = 202
    response.headers["Location"] = f"{PREFIX}/operations/{operation.id}"


def _told(verb: str, shown: VMView, limit_s: float, outcome: Outcome | None) -> str:
    """What came of a verb, in a sentence or two: what is seen, and why where it is not what was asked for."""
    what, now = f"{verb} of {shown.name}", f"It is {shown.status.value}"
    why = f": {shown.reason}" if shown.reason else ""
    match outcome:
        case Outcome.DONE:
            return f"{what}: done, it is {shown.status.value}."
        case Outcome.REFUSED:
            words = " ".join(problem.message.rstrip(".") for problem in shown.problems[:1])
            again = " It is told again until it is gone." if verb == "destroy" else ""
            return f"{what}: {shown.worker} refuses it: {words}. {now}.{again}"
        case Outcome.SUPERSEDED:
            return f"{what}: superseded: by now it is to be {shown.desired}. {now}."
        case Outcome.FAILED:
            return f"{what}: failed. {now}{why}."
        case _:
            heard = shown.worker and shown.real
            word = f"{shown.worker} says {shown.real!r}" if heard else "no worker has said anything"
            return f"{what}: not seen within {limit_s:g} s; it goes on. {now} ({word}){why}."
