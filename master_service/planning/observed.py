"""What is known of a VM, in one word: the right-hand side of the tables of `plan` and `status`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.vm import VM
from worker_service.contract import WISHED, Status


class Seen(StrEnum):
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


_SEEN: Final[Mapping[Status, Seen]] = {
    Status.STARTING: Seen.STARTING,
    Status.FAILED_TO_START: Seen.FAILED_TO_START,
    Status.INSTALLING: Seen.INSTALLING,
    Status.RUNNING: Seen.RUNNING,
    Status.SUSPENDED: Seen.SUSPENDED,
    Status.SAVING: Seen.SAVING,
    Status.FAILED_TO_SAVE: Seen.FAILED_TO_SAVE,
    Status.HALTED: Seen.HALTED,
}


_ENDS: Final = frozenset({Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE})


def last_seen(vm: VM) -> Seen:
    """What was reported last, however old it is, and whether or not the worker still answers."""
    if vm.real.tombstone is not None:
        return Seen.GONE
    status = vm.real.status
    if status is None:
        return Seen.UNREPORTED
    if status.status is Status.HALTED and status.halt_cause is not None and status.halt_cause not in WISHED:
        return Seen.CRASHED
    return _SEEN[status.status]


def seen_of(vm: VM) -> Seen:
    """What can be acted upon: a silent worker and a missing VM count as such, whatever was seen before."""
    if vm.assumed.worker is None:
        return Seen.UNREPORTED
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        return Seen.UNREACHABLE
    seen = last_seen(vm)
    if seen in _ENDS and vm.real.generation < vm.push.accepted:
        return Seen.UNREPORTED  # an end told before the newest command was taken says nothing of what came of that
    return Seen.ABSENT if vm.real.misses and seen is not Seen.GONE else seen


def keeps_disks(vm: VM) -> bool:
    """Whether the worker that reported the VM last has disks of it that are nowhere else."""
    status = vm.real.status
    if status is None or vm.real.tombstone is not None:
        return False
    return last_seen(vm) is not Seen.HALTED or any(disk.kept for disk in status.disks.values())
