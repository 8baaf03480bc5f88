"""`/api/v1/vmachines/{id}/<verb>`: the verbs of a VM. Two answer at once, four wait for their effect."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query, Response

from master_service.api.protocol.auth import PREFIX, TheMaster, User
from master_service.api.protocol.dry_run import DryRun, DryRunResponse, dry_run_response
from master_service.api.protocol.errors import RESPONSES, responses
from master_service.api.protocol.etag import IfMatch
from master_service.api.protocol.idempotency import IdempotentRoute
from master_service.api.protocol.schemas import ActionView, StartVM, VMView, vm_view
from master_service.planning.actions import describe_end_of
from master_service.planning.disk_ends import describe_origin
from master_service.planning.outcomes import Outcome
from master_service.planning.vm import VM
from master_service.policy.audit import Actor
from master_service.services.master import Master
from master_service.services.vms import LONGEST_BLOCK_S, Accepted

router = APIRouter(
    prefix="/vmachines",
    tags=["verbs"],
    responses=RESPONSES | responses(422, 429),
    route_class=IdempotentRoute,
)
Timeout = Annotated[
    float | None,
    Query(
        ge=0,
        le=LONGEST_BLOCK_S,
        allow_inf_nan=False,
        description="seconds to wait for the effect; 0: do not wait; default: the setting block_timeout_s",
    ),
]
_LATER: Final[dict[int | str, dict[str, Any]]] = {
    202: {
        "model": ActionView,
        "description": "It continues, and its effect was not observed yet",
        "headers": {"Location": {"description": "its operation, with its state", "schema": {"type": "string"}}},
    }
}
_AT_ONCE: Final = {**_LATER, 200: {"model": DryRunResponse, "description": "The result of a dry run"}}
_VERSIONED = responses(412)


@router.post("/{id_or_name}/start", status_code=202, responses=_AT_ONCE)
async def start(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str,
    master: TheMaster,
    user: User,
    response: Response,
    dry: DryRun,
    body: StartVM | None = None,
) -> ActionView | DryRunResponse:
    """Start a VM that is off or failed, or resume a suspended one (virsh: start, resume). Answers at once.

    A VM that was saved goes on from its last save. With `{"from": "image"}` it begins again from its images, and its
    last save stays as it is.
    """
    from_image = body is not None and body.origin == "image"
    request = partial(master.vms.act, id_or_name, "start", user, from_image=from_image)
    return await _accepted(master, id_or_name, request, response, _describe_start, dry=dry)


@router.post("/{id_or_name}/shutdown", status_code=202, responses=_AT_ONCE)
async def shutdown(
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun
) -> ActionView | DryRunResponse:
    """Ask the guest to shut down; then its disks are saved, kept or discarded (virsh: shutdown). Answers at once."""
    request = partial(master.vms.act, id_or_name, "shutdown", user)
    return await _accepted(master, id_or_name, request, response, _describe_shutdown, dry=dry)


@router.post("/{id_or_name}/suspend", responses=_LATER)
async def suspend(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Pause a VM in memory (virsh: suspend). Blocks until the effect is observed; after the timeout answers 202."""
    request = partial(master.vms.act, id_or_name, "suspend", user)
    return await _blocking(master, id_or_name, "suspend", request, user, response, timeout_s, dry=dry)


@router.post("/{id_or_name}/resume", responses=_LATER)
async def resume(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Resume a suspended VM (virsh: resume). Blocks until the effect is observed; after the timeout answers 202."""
    request = partial(master.vms.act, id_or_name, "resume", user)
    return await _blocking(master, id_or_name, "resume", request, user, response, timeout_s, dry=dry)


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
    """Discard a VM and its disks without saving them. virsh's destroy only powers off.

    Blocks until its worker confirms; after the timeout answers 202. May be repeated.
    """
    request = partial(master.vms.act, id_or_name, "destroy", user, if_match)
    return await _blocking(master, id_or_name, "destroy", request, user, response, timeout_s, dry=dry)


@router.post("/{id_or_name}/save_retry", responses={**_LATER, **responses(503)})
async def save_retry(  # noqa: PLR0913, PLR0917 - one parameter per part of the request
    id_or_name: str, master: TheMaster, user: User, response: Response, dry: DryRun, timeout_s: Timeout = None
) -> ActionView | DryRunResponse:
    """Retry saving disks that the worker could not save. Blocks until they are saved, or until the timeout.

    Answers 409 with the worker's message if it refuses, or fails again.
    """
    request = partial(master.vms.save_retry, id_or_name, user)
    return await _blocking(master, id_or_name, "save_retry", request, user, response, timeout_s, dry=dry)


def view(master: Master, vm: VM) -> VMView:
    """Return the view of one VM now."""
    return vm_view(vm, master.context.clock(), master.context.settings)


async def _accepted(  # noqa: PLR0913 - the parameters of two routes
    master: Master,
    id_or_name: str,
    request: Callable[[], Awaitable[Accepted]],
    response: Response,
    describe: Callable[[VM], str],
    *,
    dry: bool,
) -> ActionView | DryRunResponse:
    if dry:
        response.status_code = 200
        return await dry_run_response(master, id_or_name, vm_after(request))
    operation = await request()
    answer_accepted(response, operation)
    return ActionView(done=None, outcome=None, message=describe(operation.vm), vmachine=view(master, operation.vm))


def _describe_start(vm: VM) -> str:
    return f"It will be started. {describe_origin(vm)}".strip()


def _describe_shutdown(vm: VM) -> str:
    return f"Its guest will be asked to shut down. {describe_end_of(vm)}"


async def _blocking(  # noqa: PLR0913, PLR0917 - the parameters of four routes
    master: Master,
    id_or_name: str,
    verb: str,
    request: Callable[[], Awaitable[Accepted]],
    user: Actor,
    response: Response,
    timeout_s: float | None,
    *,
    dry: bool,
) -> ActionView | DryRunResponse:
    """Request a verb, wait for its effect, and return the outcome."""
    if dry:
        return await dry_run_response(master, id_or_name, vm_after(request))
    limit_s = master.context.settings.block_timeout_s if timeout_s is None else timeout_s
    # Before the request, so that a refusal has changed nothing.
    with master.waits.taken(user.name) if limit_s else nullcontext():
        operation = await request()
        vm, outcome = await master.vms.wait(operation.vm.uuid, verb, limit_s)
    if outcome is None:
        answer_accepted(response, operation)
    shown = view(master, vm)
    message = _message(verb, shown, limit_s, outcome)
    return ActionView(done=outcome is Outcome.DONE, outcome=outcome, message=message, vmachine=shown)


def vm_after(request: Callable[[], Awaitable[Accepted]]) -> Callable[[], Awaitable[VM]]:
    """Return the same request, whose result is the VM alone."""

    async def vm() -> VM:
        return (await request()).vm

    return vm


def answer_accepted(response: Response, operation: Accepted) -> None:
    """Answer that a request continues, and where its state is."""
    response.status_code = 202
    response.headers["Location"] = f"{PREFIX}/operations/{operation.id}"


def _message(verb: str, shown: VMView, limit_s: float, outcome: Outcome | None) -> str:
    """Describe the outcome of a verb: the status now, and why it is not the requested one."""
    what, now = f"{verb} of {shown.name}", f"It is {shown.status.value}"
    why = f": {shown.reason}" if shown.reason else ""
    match outcome:
        case Outcome.DONE:
            return f"{what}: done, it is {shown.status.value}."
        case Outcome.REFUSED:
            words = " ".join(problem.message.rstrip(".") for problem in shown.problems[:1])
            again = " The command is sent again until the VM is gone." if verb == "destroy" else ""
            return f"{what}: {shown.worker} refuses it: {words}. {now}.{again}"
        case Outcome.SUPERSEDED:
            return f"{what}: superseded: its desired state is now {shown.desired}. {now}."
        case Outcome.FAILED:
            return f"{what}: failed. {now}{why}."
        case _:
            reported = shown.worker and shown.real
            report = f"{shown.worker} reports {shown.real!r}" if reported else "no worker has reported it"
            return f"{what}: not observed within {limit_s:g} s; it continues. {now} ({report}){why}."
