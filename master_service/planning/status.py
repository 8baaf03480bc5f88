"""The status that people see, computed from what is wanted, what was reported, and what the pusher did.

Three words of the contract meet here. What the user's will is, is stored: `wanted` (running, paused, halted,
destroyed). `assumed` is how far that will has been carried out, in the words of DESIGN's table, and is computed:
starting (the start is in the queue), preparing (it was pushed), installing, running, paused, halted, destroying.
`real` is the worker's own word. The master's status follows from both. A silent worker changes none of them: its VMs
keep what was seen last, with its age, and the reason says since when it is silent. Nothing is ever called stopped
because nobody answered.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from master_service.core.settings import Settings
from master_service.planning.observed import ObservedStatus, last_reported_status
from master_service.planning.planner import DecisionKind, decide
from master_service.planning.vm import VM, DesiredStatus, VMProblem


class MasterStatus(StrEnum):
    """The master's statuses: the contract's, those that a worker says, and the answer for a VM that is gone."""

    PENDING = "pending"
    PREPARING = "preparing"
    INSTALLING = "installing"
    RUNNING = "running"
    PAUSED = "paused"
    DESTROYING = "destroying"
    SAVING = "saving"
    HALTED = "halted"
    FAILED = "failed"
    DESTROYED = "destroyed"
    """Confirmed by its worker; told only to whoever still asks for the uuid."""


_AS_SEEN: Final[Mapping[ObservedStatus, MasterStatus]] = {
    ObservedStatus.UNREPORTED: MasterStatus.PENDING,
    ObservedStatus.STARTING: MasterStatus.PREPARING,
    ObservedStatus.INSTALLING: MasterStatus.INSTALLING,
    ObservedStatus.RUNNING: MasterStatus.RUNNING,
    ObservedStatus.SUSPENDED: MasterStatus.PAUSED,
    ObservedStatus.SAVING: MasterStatus.SAVING,
    ObservedStatus.HALTED: MasterStatus.HALTED,
    ObservedStatus.CRASHED: MasterStatus.FAILED,
    ObservedStatus.FAILED_TO_START: MasterStatus.FAILED,
    ObservedStatus.FAILED_TO_SAVE: MasterStatus.FAILED,
    ObservedStatus.GONE: MasterStatus.FAILED,
}
STATUSES: Final[Mapping[tuple[DesiredStatus, ObservedStatus], MasterStatus]] = {
    **{(DesiredStatus.RUNNING, seen): status for seen, status in _AS_SEEN.items()},
    **{(DesiredStatus.PAUSED, seen): status for seen, status in _AS_SEEN.items()},
    **{(DesiredStatus.HALTED, seen): status for seen, status in _AS_SEEN.items()},
    (DesiredStatus.HALTED, ObservedStatus.UNREPORTED): MasterStatus.HALTED,
    (DesiredStatus.HALTED, ObservedStatus.CRASHED): MasterStatus.HALTED,
    **{(DesiredStatus.DESTROYED, seen): MasterStatus.DESTROYING for seen in _AS_SEEN},
}
"""(wanted, last seen) -> status. Absence and silence are no statuses: they are told in the reason."""

_DOWN: Final = frozenset(
    {
        ObservedStatus.UNREPORTED,
        ObservedStatus.HALTED,
        ObservedStatus.CRASHED,
        ObservedStatus.FAILED_TO_START,
        ObservedStatus.GONE,
    }
)
"""Nothing of it runs: a start that the worker has not taken yet is still on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DisplayStatus:
    """What people see of one VM. `reason`: why it differs from what is wanted; `next_at`: of the next try."""

    status: MasterStatus
    assumed: str
    real: str | None
    reason: str
    problems: tuple[VMProblem, ...]
    next_at: datetime | None


def display_status(vm: VM, now: datetime, settings: Settings) -> DisplayStatus:
    """The status of one VM, with its reason: the same decision that the pusher acts upon explains itself here."""
    decision = decide(vm, now, settings)
    status = master_status(vm)
    problems = _problems(vm)
    if decision.kind is DecisionKind.STUCK:
        problems += (VMProblem(code="stuck", message=f"It seems to be stuck: {decision.why}."),)
    reason = decision.why
    if status is MasterStatus.PENDING and vm.current_dispatch.problem:
        reason = vm.current_dispatch.problem.message
    elif status is MasterStatus.DESTROYED:
        reason = ""
    return DisplayStatus(
        status=status,
        assumed=assumed_of(vm),
        real=vm.observed.status.status.value if vm.observed.status else None,
        reason=reason,
        problems=problems,
        next_at=decision.due if decision.kind is DecisionKind.WAIT else None,
    )


def assumed_of(vm: VM) -> str:
    """How far the user's will has been carried out: `assumed` of the contract. See the module's docstring."""
    match vm.desired.status:
        case DesiredStatus.DESTROYED:
            return "destroying"
        case DesiredStatus.HALTED:
            return "halted"
        case DesiredStatus.PAUSED:
            return "paused"
        case _:  # running
            pass
    seen = last_reported_status(vm)
    if seen is ObservedStatus.INSTALLING:
        return "installing"
    if seen not in _DOWN and seen is not ObservedStatus.STARTING:
        return "running"
    return "preparing" if seen is ObservedStatus.STARTING or vm.current_dispatch.sent_at else "starting"


def master_status(vm: VM) -> MasterStatus:
    """The status alone; it does not depend on the time."""
    if vm.desired.destroyed_at is not None:
        return MasterStatus.DESTROYED
    wanted, seen = vm.desired.status, last_reported_status(vm)
    status = STATUSES[wanted, seen]
    if wanted in (DesiredStatus.RUNNING, DesiredStatus.PAUSED) and seen in _DOWN:
        push = vm.current_dispatch
        if push.verb == "start" and push.refused_for_good:
            return MasterStatus.FAILED
        if not vm.delivered:
            return MasterStatus.PENDING
    return status


def _problems(vm: VM) -> tuple[VMProblem, ...]:
    found: list[VMProblem] = []
    if vm.current_dispatch.problem:
        found.append(vm.current_dispatch.problem)
    status = vm.observed.status
    if status is not None:
        seen = last_reported_status(vm)
        if seen in (ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE):
            found.append(VMProblem(code=seen.value.replace(" ", "_"), message=status.message))
        if seen is ObservedStatus.CRASHED and status.halt_cause:
            kept = ", ".join(disk.kept for disk in status.disks.values() if disk.kept)
            where = f" Its disks are kept: {kept}." if kept else ""
            found.append(VMProblem(code="crashed", message=f"It went off: {status.halt_cause.value}.{where}"))
        if status.problem:
            found.append(VMProblem(code="worker", message=status.problem))
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        since = vm.worker.unreachable_since
        message = f"Worker {vm.worker.id} is unreachable since {since:%Y-%m-%d %H:%M:%S} UTC; what is shown is older."
        found.append(VMProblem(code="unreachable", message=message))
    return tuple(found)
