"""Compute the next action of the pusher for a VM, and its worker, by the same decisions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.core.audience import two_forms, without_marks
from master_service.core.settings import Settings
from master_service.planning.actions import boot_of
from master_service.planning.decision import DecisionKind
from master_service.planning.placement import Candidate, place
from master_service.planning.planner import decide
from master_service.planning.vm import PERMANENT, VM, ObservedState, Worker
from master_service.saltapi.untrusted import sanitize_text
from worker_service.contract import MODIFIABLE, PLAN_FEATURE, Code, ImagePlan, PlanReply, PlanRequest, Spec, names_room

_MOST_IMAGES: Final = 8
_BLANK: Final = "blank:1M"
_SMALL_MIB: Final = 16
"""The least memory that a worker accepts."""
NOTHING: Final = "it is in its desired state; nothing would be done"


@dataclass(frozen=True, kw_only=True, slots=True)
class DryRunResult:
    """The result of a dry run. `command` would be sent to `worker`; both are None when nothing would be sent."""

    kind: DecisionKind
    message: str
    worker: str | None = None
    command: str | None = None
    due: datetime | None = None


def dry_run(vm: VM, candidates: Iterable[Candidate], now: datetime, settings: Settings) -> DryRunResult:
    """Return what the pusher would do about a VM, with the worker that placement would choose if it has none."""
    decision = decide(vm, now, settings)
    if decision.command is None:
        return DryRunResult(
            kind=decision.kind, message=decision.reason or NOTHING, worker=vm.desired.worker, due=decision.due
        )
    verb, elsewhere = decision.command.verb, decision.command.elsewhere
    if vm.desired.worker is not None and not elsewhere:
        return DryRunResult(kind=decision.kind, message=decision.reason, worker=vm.desired.worker, command=verb)
    placement = place(vm.desired.spec, candidates, vm.desired.pin, vm.current_dispatch.rejected_by if elsewhere else ())
    if placement.worker is None:
        return DryRunResult(kind=DecisionKind.WAIT, message=f"{decision.reason}: {placement.reason}")
    message = f"{decision.reason if elsewhere else verb}: {placement.reason}"
    return DryRunResult(kind=decision.kind, message=message, worker=placement.worker, command=verb)


@dataclass(frozen=True, kw_only=True, slots=True)
class WorkerPlan:
    """What a worker says about a start, or why it was not asked. `fits` is None where nothing is known."""

    worker: str
    fits: bool | None
    message: str
    code: str = ""
    bytes_to_fetch: int | None = None
    images: tuple[ImagePlan, ...] = ()

    @property
    def refuses(self) -> bool:
        """Whether the worker would refuse the same request again. Neither silence nor a lack of room is a refusal."""
        return self.fits is False and self.code in PERMANENT


def unknown_plan(worker: str, why: str) -> WorkerPlan:
    """Return the plan of a worker that has not answered."""
    return WorkerPlan(worker=worker, fits=None, message=f"{worker} {why}; what it would do is not known")


def reason_not_to_send(worker: Worker) -> str:
    """Return why a worker cannot be asked for a plan now; empty if it can."""
    if worker.unreachable_since is not None:
        return f"is unreachable since {worker.unreachable_since:%Y-%m-%d %H:%M:%S} UTC"
    if worker.capacity is None or PLAN_FEATURE not in worker.capacity.features:
        return f"has an older version of Saltern ({worker.version or 'unknown'}), which cannot be asked"
    return ""


def plan_request(vm: VM) -> PlanRequest:
    """Return the request for the plan of a VM's start."""
    params, origin = boot_of(vm)
    spec = {name: getattr(params, name) for name in Spec.__struct_fields__}
    return PlanRequest(uuid=vm.uuid, owner=vm.desired.owner, origin=origin, **spec)


def question_about_changes(before: VM, after: VM) -> VM | None:
    """Return a VM whose plan tells whether the worker accepts changed settings of one that is there, or None.

    It has the new save targets and the new CD, and nothing else that a worker could refuse: its images are fetched.
    """
    old, new = before.desired.spec, after.desired.spec
    settings = {name: value for name in MODIFIABLE if (value := getattr(new, name)) and value != getattr(old, name)}
    if not settings or after.desired.worker is None:
        return None
    second = _BLANK if "hdb_save_to" in settings else None
    spec = Spec(
        name=new.name,
        hypervisor=new.hypervisor,
        sys_arch=new.sys_arch,
        hda_image=_BLANK,
        hdb_image=second,
        mem_size=_SMALL_MIB,
        network="none",
    )
    spec = msgspec.structs.replace(spec, **settings)
    # Without its last saves or kept disks, from which a start would go on.
    return replace(after, desired=replace(after.desired, spec=spec), observed=ObservedState())


def read_plan(worker: str, answer: object) -> WorkerPlan:
    """Return a worker's answer to `plan`, whatever it is. Its numbers are only for those who may see the workers."""
    try:
        reply = msgspec.convert(answer, PlanReply)
    except (msgspec.ValidationError, RecursionError):
        return unknown_plan(worker, "answers in an unknown shape")
    message = without_marks(sanitize_text(reply.message)).rstrip(".")
    if not reply.success and reply.code in (None, Code.INTERNAL):
        return unknown_plan(worker, f"was not understood: {message}")
    if names_room(message):
        message = two_forms(message)
    if not reply.success:
        return WorkerPlan(worker=worker, fits=False, message=f"{worker} refuses it: {message}", code=str(reply.code))
    return WorkerPlan(
        worker=worker,
        fits=reply.fits,
        message=f"{worker}: {message}",
        code="" if reply.fits else str(reply.code or Code.NO_ROOM),
        bytes_to_fetch=reply.bytes_to_fetch,
        images=reply.images[:_MOST_IMAGES],
    )


def changes(before: VM | None, after: VM) -> list[tuple[str, Any, Any]]:
    """Return (field, before, after) for each difference in the desired state; for a new VM all fields."""
    old, new = _desired(before) if before else {}, _desired(after)
    return [(field, old.get(field), new[field]) for field in new if old.get(field) != new[field]]


def _desired(vm: VM) -> dict[str, Any]:
    spec = msgspec.structs.asdict(vm.desired.spec)
    spec |= {"soft_list": list(spec["soft_list"]), "ssh_keys": list(spec["ssh_keys"])}
    own = {"worker": vm.desired.pin, "labels": dict(vm.desired.labels), "protected": vm.desired.protected}
    return {"desired": vm.desired.status.value, **spec, **own}
