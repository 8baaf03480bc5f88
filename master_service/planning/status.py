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
from master_service.planning.observed import Seen, last_seen
from master_service.planning.planner import Do, decide
from master_service.planning.vm import VM, Problem, Wanted


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


_AS_SEEN: Final[Mapping[Seen, MasterStatus]] = {
    Seen.UNREPORTED: MasterStatus.PENDING,
    Seen.STARTING: MasterStatus.PREPARING,
    Seen.INSTALLING: MasterStatus.INSTALLING,
    Seen.RUNNING: MasterStatus.RUNNING,
    Seen.SUSPENDED: MasterStatus.PAUSED,
    Seen.SAVING: MasterStatus.SAVING,
    Seen.HALTED: MasterStatus.HALTED,
    Seen.CRASHED: MasterStatus.FAILED,
    Seen.FAILED_TO_START: MasterStatus.FAILED,
    Seen.FAILED_TO_SAVE: MasterStatus.FAILED,
    Seen.GONE: MasterStatus.FAILED,
}
STATUSES: Final[Mapping[tuple[Wanted, Seen], MasterStatus]] = {
    **{(Wanted.RUNNING, seen): status for seen, status in _AS_SEEN.items()},
    **{(Wanted.PAUSED, seen): status for seen, status in _AS_SEEN.items()},
    **{(Wanted.HALTED, seen): status for seen, status in _AS_SEEN.items()},
    (Wanted.HALTED, Seen.UNREPORTED): MasterStatus.HALTED,
    (Wanted.HALTED, Seen.CRASHED): MasterStatus.HALTED,
    **{(Wanted.DESTROYED, seen): MasterStatus.DESTROYING for seen in _AS_SEEN},
}
"""(wanted, last seen) -> status. Absence and silence are no statuses: they are told in the reason."""

_DOWN: Final = frozenset({Seen.UNREPORTED, Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.GONE})
"""Nothing of it runs: a start that the worker has not taken yet is still on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """What people see of one VM. `reason`: why it differs from what is wanted; `next_at`: of the next try."""

    status: MasterStatus
    assumed: str
    real: str | None
    reason: str
    problems: tuple[Problem, ...]
    next_at: datetime | None


def status_of(vm: VM, now: datetime, settings: Settings) -> Shown:
    """The status of one VM, with its reason: the same decision that the pusher acts upon explains itself here."""
    decision = decide(vm, now, settings)
    status = status_word(vm)
    problems = _problems(vm)
    if decision.do is Do.STUCK:
        problems += (Problem(code="stuck", message=f"It seems to be stuck: {decision.why}."),)
    reason = decision.why
    if status is MasterStatus.PENDING and vm.current_push.problem:
        reason = vm.current_push.problem.message
    elif status is MasterStatus.DESTROYED:
        reason = ""
    return Shown(
        status=status,
        assumed=assumed_of(vm),
        real=vm.real.status.status.value if vm.real.status else None,
        reason=reason,
        problems=problems,
        next_at=decision.due if decision.do is Do.WAIT else None,
    )


def assumed_of(vm: VM) -> str:
    """How far the user's will has been carried out: `assumed` of the contract. See the module's docstring."""
    match vm.assumed.wanted:
        case Wanted.DESTROYED:
            return "destroying"
        case Wanted.HALTED:
            return "halted"
        case Wanted.PAUSED:
            return "paused"
        case Wanted.RUNNING:
            pass
    seen = last_seen(vm)
    if seen is Seen.INSTALLING:
        return "installing"
    if seen not in _DOWN and seen is not Seen.STARTING:
        return "running"
    return "preparing" if seen is Seen.STARTING or vm.current_push.sent_at else "starting"


def status_word(vm: VM) -> MasterStatus:
    """The status alone; it does not depend on the time."""
    if vm.assumed.destroyed_at is not None:
        return MasterStatus.DESTROYED
    wanted, seen = vm.assumed.wanted, last_seen(vm)
    status = STATUSES[wanted, seen]
    if wanted in (Wanted.RUNNING, Wanted.PAUSED) and seen in _DOWN:
        push = vm.current_push
        if push.verb == "start" and push.refused_for_good:
            return MasterStatus.FAILED
        if not vm.delivered:
            return MasterStatus.PENDING
    return status


def _problems(vm: VM) -> tuple[Problem, ...]:
    found: list[Problem] = []
    if vm.current_push.problem:
        found.append(vm.current_push.problem)
    status = vm.real.status
    if status is not None:
        seen = last_seen(vm)
        if seen in (Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE):
            found.append(Problem(code=seen.value.replace(" ", "_"), message=status.message))
        if seen is Seen.CRASHED and status.halt_cause:
            kept = ", ".join(disk.kept for disk in status.disks.values() if disk.kept)
            where = f" Its disks are kept: {kept}." if kept else ""
            found.append(Problem(code="crashed", message=f"It went off: {status.halt_cause.value}.{where}"))
        if status.problem:
            found.append(Problem(code="worker", message=status.problem))
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        since = vm.worker.unreachable_since
        message = f"Worker {vm.worker.id} is unreachable since {since:%Y-%m-%d %H:%M:%S} UTC; what is shown is older."
        found.append(Problem(code="unreachable", message=message))
    return tuple(found)
