"""What is known of a VM, in one word: the right-hand side of the tables of `plan` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.vm import VM
from worker_service.contract import INTENDED_HALTS, Status


class ObservedStatus(StrEnum):
    """What is known of a VM, in one word. All but the first two and the last two are what its worker says."""

    UNREPORTED = "not reported by any worker yet"
    ABSENT = "missing in its worker's list"
    STARTING = "starting"
    INSTALLING = "installing"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SAVING = "saving"
    HALTED = "halted by somebody's wish"
    CRASHED = "halted by nobody's wish"
    FAILED_TO_START = "failed to start"
    FAILED_TO_SAVE = "failed to save"
    GONE = "destroyed by its worker"
    UNREACHABLE = "its worker is silent"


_SEEN: Final[Mapping[Status, ObservedStatus]] = {
    Status.STARTING: ObservedStatus.STARTING,
    Status.FAILED_TO_START: ObservedStatus.FAILED_TO_START,
    Status.INSTALLING: ObservedStatus.INSTALLING,
    Status.RUNNING: ObservedStatus.RUNNING,
    Status.SUSPENDED: ObservedStatus.SUSPENDED,
    Status.SAVING: ObservedStatus.SAVING,
    Status.FAILED_TO_SAVE: ObservedStatus.FAILED_TO_SAVE,
    Status.HALTED: ObservedStatus.HALTED,
}


_ENDS: Final = frozenset(
    {ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE}
)


def last_reported_status(vm: VM) -> ObservedStatus:
    """What was reported last, however old it is, and whether or not the worker still answers."""
    if vm.observed.tombstone is not None:
        return ObservedStatus.GONE
    status = vm.observed.status
    if status is None:
        return ObservedStatus.UNREPORTED
    if status.status is Status.HALTED and status.halt_cause is not None and status.halt_cause not in INTENDED_HALTS:
        return ObservedStatus.CRASHED
    return _SEEN[status.status]


def observed_status(vm: VM) -> ObservedStatus:
    """What can be acted upon: a silent worker and a missing VM count as such, whatever was seen before."""
    if vm.desired.worker is None:
        return ObservedStatus.UNREPORTED
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        return ObservedStatus.UNREACHABLE
    seen = last_reported_status(vm)
    if seen in _ENDS and vm.observed.generation < vm.dispatch.accepted:
        return (
            ObservedStatus.UNREPORTED
        )  # an end told before the newest command was taken says nothing of what came of that
    return ObservedStatus.ABSENT if vm.observed.missed_polls and seen is not ObservedStatus.GONE else seen


def keeps_disks(vm: VM) -> bool:
    """Whether the worker that reported the VM last has disks of it that are nowhere else."""
    status = vm.observed.status
    if status is None or vm.observed.tombstone is not None:
        return False
    return last_reported_status(vm) is not ObservedStatus.HALTED or any(disk.kept for disk in status.disks.values())
