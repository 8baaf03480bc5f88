"""Compute the displayed status from the desired state, the observed state, and the state of dispatch.

The contract has three words for it. `desired` is stored: running, paused, halted or destroyed. `assumed` is computed
and says how far the desired state has been carried out: starting (the start is queued), preparing (it was sent),
installing, running, paused, halted, destroying. `real` is the status that the worker reported. The master's status
follows from these. An unreachable worker changes none of them: its VMs keep their last status with its age, and the
reason says since when the worker is unreachable. The master never calls a VM stopped because its worker is silent.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Final

from master_service.core.errors import BadRequest
from master_service.core.settings import Settings
from master_service.planning.decision import DecisionKind
from master_service.planning.observed import (
    HELD,
    ObservedStatus,
    awaits_start,
    is_migrated,
    last_reported_status,
    observed_status,
)
from master_service.planning.planner import decide
from master_service.planning.vm import VM, DesiredStatus, VMProblem
from worker_service.contract import Status


class MasterStatus(StrEnum):
    """The master's statuses: those of the contract, those of the worker, and `destroyed`."""

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
    """The worker has confirmed it. Only a request by uuid still finds the VM."""


_AS_REPORTED: Final[Mapping[ObservedStatus, MasterStatus]] = {
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
    **{(DesiredStatus.RUNNING, reported): status for reported, status in _AS_REPORTED.items()},
    **{(DesiredStatus.PAUSED, reported): status for reported, status in _AS_REPORTED.items()},
    **{(DesiredStatus.HALTED, reported): status for reported, status in _AS_REPORTED.items()},
    (DesiredStatus.HALTED, ObservedStatus.UNREPORTED): MasterStatus.HALTED,
    (DesiredStatus.HALTED, ObservedStatus.CRASHED): MasterStatus.HALTED,
    **{(DesiredStatus.DESTROYED, reported): MasterStatus.DESTROYING for reported in _AS_REPORTED},
}
"""(desired, last reported) -> status. Absence and silence are no statuses: the reason mentions them."""

OF_WORKERS: Final[Mapping[Status, MasterStatus]] = {word: _AS_REPORTED[ObservedStatus(word.value)] for word in Status}
"""A worker's word -> the master's."""

_DOWN: Final = frozenset(
    {
        ObservedStatus.UNREPORTED,
        ObservedStatus.HALTED,
        ObservedStatus.CRASHED,
        ObservedStatus.FAILED_TO_START,
        ObservedStatus.GONE,
    }
)
"""Without a running domain, a start that the worker has not accepted yet is still on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DisplayStatus:
    """The displayed status of one VM. `reason` is the cause of a difference, `next_at` the time of the next try."""

    status: MasterStatus
    assumed: str
    real: str | None
    reason: str
    problems: tuple[VMProblem, ...]
    next_at: datetime | None
    refused: bool
    """Whether its worker refuses the last command for good. It is not sent again until a user changes something."""


_NO_MORE_TO_DO: Final = frozenset({DecisionKind.REPORT, DecisionKind.GIVE_UP, DecisionKind.NOTHING})


def display_status(vm: VM, now: datetime, settings: Settings) -> DisplayStatus:
    """Return the status of one VM. Its reason comes from the decision on which the pusher acts."""
    decision = decide(vm, now, settings)
    status = master_status(vm)
    problems = _problems(vm)
    if decision.kind is DecisionKind.STUCK:
        problems += (VMProblem(code="stuck", message=f"It seems to be stuck: {decision.reason}."),)
    if decision.kind is DecisionKind.REPORT and last_reported_status(vm) is ObservedStatus.GONE:
        problems += (VMProblem(code="gone", message=f"{decision.reason[0].upper()}{decision.reason[1:]}."),)
    elif decision.reason and (code := HELD.get(observed_status(vm))):
        problems += (VMProblem(code=code, message=f"{decision.reason[0].upper()}{decision.reason[1:]}."),)
    elif decision.kind is DecisionKind.REPORT and not problems:
        problems += (VMProblem(code="no_effect", message=f"A command had no effect: {decision.reason}."),)
    problems += tuple(_problems_of_place(vm))
    reason, problem = decision.reason, vm.current_dispatch.problem
    if status is MasterStatus.PENDING and problem and problem.message not in reason:
        reason = problem.message
    elif status is MasterStatus.DESTROYED:
        reason = ""
    return DisplayStatus(
        status=status,
        assumed=assumed_of(vm),
        real=vm.observed.status.status.value if vm.observed.status else None,
        reason=reason,
        problems=problems,
        next_at=decision.due if decision.kind is DecisionKind.WAIT else None,
        refused=decision.kind in _NO_MORE_TO_DO and vm.current_dispatch.refused_for_good,
    )


def assumed_of(vm: VM) -> str:
    """Return `assumed` of the contract: how far the desired state has been carried out."""
    match vm.desired.status:
        case DesiredStatus.DESTROYED:
            return "destroying"
        case DesiredStatus.HALTED:
            return "halted"
        case DesiredStatus.PAUSED:
            return "paused"
        case _:  # running
            pass
    reported = last_reported_status(vm)
    if reported is ObservedStatus.INSTALLING:
        return "installing"
    if reported not in _DOWN and reported is not ObservedStatus.STARTING:
        return "running"
    return "preparing" if reported is ObservedStatus.STARTING or vm.current_dispatch.sent_at else "starting"


def master_status(vm: VM) -> MasterStatus:
    """Return the status alone, which does not depend on the time."""
    if vm.desired.destroyed_at is not None:
        return MasterStatus.DESTROYED
    desired, reported = vm.desired.status, last_reported_status(vm)
    status = STATUSES[desired, reported]
    if desired in (DesiredStatus.RUNNING, DesiredStatus.PAUSED) and reported in _DOWN:
        dispatch = vm.current_dispatch
        if dispatch.verb == "start" and dispatch.refused_for_good:
            return MasterStatus.FAILED
        if awaits_start(vm):
            return MasterStatus.PENDING
    return status


@dataclass(frozen=True, slots=True)
class SoughtStatus:
    """A status by which VMs are sought: one of the master's, and the worker's where that says more."""

    status: MasterStatus
    reported: ObservedStatus | None = None

    def fits(self, vm: VM) -> bool:
        """Return whether a VM has this status."""
        if self.reported is ObservedStatus.FAILED_TO_START:
            return has_failed_to_start(vm)
        return master_status(vm) is self.status and self.reported in (None, last_reported_status(vm))


_SOUGHT: Final[Mapping[str, SoughtStatus]] = {
    **{word.value: SoughtStatus(status, ObservedStatus(word.value)) for word, status in OF_WORKERS.items()},
    **{status.value: SoughtStatus(status) for status in MasterStatus},
}
"""A word -> the status. The master's meaning counts where both have the word."""


def sought_status(text: str) -> SoughtStatus:
    """Return a status by its word in either vocabulary; `failed_to_save` is `failed to save`. Raises BadRequest."""
    if sought := _SOUGHT.get(text.strip().lower().replace("_", " ").replace("-", " ")):
        return sought
    words, more = ", ".join(MasterStatus), ", ".join(word for word in _SOUGHT if word not in {*map(str, MasterStatus)})
    raise BadRequest([("status", f"{text!r} is no status. The statuses are {words}; the workers' words are {more}")])


def has_failed_to_start(vm: VM) -> bool:
    """Return whether its last start has failed, or was refused for good: nobody tries again before its user does."""
    if master_status(vm) is not MasterStatus.FAILED:
        return False
    refused = vm.current_dispatch.verb == "start" and vm.current_dispatch.refused_for_good
    return refused or last_reported_status(vm) is ObservedStatus.FAILED_TO_START


def _problems(vm: VM) -> tuple[VMProblem, ...]:
    found: list[VMProblem] = []
    if vm.current_dispatch.problem:
        found.append(vm.current_dispatch.problem)
    status = vm.observed.status
    if status is not None:
        reported = last_reported_status(vm)
        if reported in (ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE):
            found.append(VMProblem(code=reported.value.replace(" ", "_"), message=status.message))
        if reported is ObservedStatus.CRASHED and status.halt_cause and not is_migrated(vm):
            kept = ", ".join(disk.kept for disk in status.disks.values() if disk.kept)
            where = f" Its disks are kept: {kept}." if kept else ""
            found.append(VMProblem(code="crashed", message=f"It stopped: {status.halt_cause.value}.{where}"))
        if status.problem:
            found.append(VMProblem(code="worker", message=status.problem))
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        since = f"unreachable since {vm.worker.unreachable_since:%Y-%m-%d %H:%M:%S} UTC"
        message = f"Worker {vm.worker.id} is {since}; its VMs show their last status."
        found.append(VMProblem(code="unreachable", message=message))
    return tuple(found)


def _problems_of_place(vm: VM) -> Iterator[VMProblem]:
    """Yield what a user should know of a worker that gets no new VMs."""
    worker = vm.worker
    if worker is None or vm.desired.status is DesiredStatus.DESTROYED:
        return
    stays = "it gets no new VMs. This one stays there, and starts there again."
    if worker.fenced_at is not None:
        since = f"fenced since {worker.fenced_at:%Y-%m-%d %H:%M:%S} UTC"
        yield VMProblem(code="fenced", message=f"Worker {worker.id} is {since}: {stays}")
    elif worker.draining:
        yield VMProblem(code="drained", message=f"Worker {worker.id} is drained: {stays}")
