"""The observed status of a VM: the second key of the tables of the planner and of `status`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Final

from master_service.planning.vm import VM
from worker_service.contract import INTENDED_HALTS, HaltCause, Status


class ObservedStatus(StrEnum):
    """The status of a VM. The first two and the last six come from the master, the others from its worker.

    Messages to users contain the values.
    """

    UNREPORTED = "not reported by any worker yet"
    ABSENT = "missing from its worker's list"
    STARTING = "starting"
    INSTALLING = "installing"
    RUNNING = "running"
    SUSPENDED = "suspended"
    SAVING = "saving"
    HALTED = "halted"
    CRASHED = "stopped unexpectedly"
    FAILED_TO_START = "failed to start"
    FAILED_TO_SAVE = "failed to save"
    GONE = "destroyed by its worker"
    UNREACHABLE = "on an unreachable worker"
    ELSEWHERE = "a domain that some worker runs without managing it"
    MIGRATED = "migrated away from its worker"
    BUSY = "in a job of libvirt"
    SOUGHT = "off, and perhaps on another worker"


_REPORTED: Final[Mapping[Status, ObservedStatus]] = {
    Status.STARTING: ObservedStatus.STARTING,
    Status.FAILED_TO_START: ObservedStatus.FAILED_TO_START,
    Status.INSTALLING: ObservedStatus.INSTALLING,
    Status.RUNNING: ObservedStatus.RUNNING,
    Status.SUSPENDED: ObservedStatus.SUSPENDED,
    Status.SAVING: ObservedStatus.SAVING,
    Status.FAILED_TO_SAVE: ObservedStatus.FAILED_TO_SAVE,
    Status.HALTED: ObservedStatus.HALTED,
}


ON: Final = frozenset(
    {ObservedStatus.STARTING, ObservedStatus.INSTALLING, ObservedStatus.RUNNING, ObservedStatus.SUSPENDED}
)
"""Statuses of a VM that is on, or about to be."""

ENDS: Final = frozenset(
    {ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.FAILED_TO_SAVE}
)
"""Statuses in which a VM stays until somebody starts it again."""


def last_reported_status(vm: VM) -> ObservedStatus:
    """Return the last reported status, however old it is, and whether or not the worker still answers."""
    if vm.observed.tombstone is not None:
        return ObservedStatus.GONE
    status = vm.observed.status
    if status is None:
        return ObservedStatus.UNREPORTED
    if status.status is Status.HALTED and status.halt_cause is not None and status.halt_cause not in INTENDED_HALTS:
        return ObservedStatus.CRASHED
    return _REPORTED[status.status]


HELD: Final[Mapping[ObservedStatus, str]] = {
    ObservedStatus.ELSEWHERE: "elsewhere",
    ObservedStatus.MIGRATED: "migrated",
    ObservedStatus.BUSY: "busy",
    ObservedStatus.SOUGHT: "",
}
"""Statuses in which somebody else works, or may work, on the domain. Such a VM gets no command.

Each has the code of its problem; empty: that passes by itself within seconds.
"""

LEFT: Final = frozenset({HaltCause.KILLED, HaltCause.UNKNOWN, HaltCause.MIGRATED})
"""Causes of a halt that a worker also reports when the domain was migrated away."""


def is_migrated(vm: VM) -> bool:
    """Return whether the last report says that libvirt migrated the VM away."""
    return last_reported_status(vm) is ObservedStatus.CRASHED and _halt_cause(vm) is HaltCause.MIGRATED


def _halt_cause(vm: VM) -> HaltCause | None:
    return vm.observed.status.halt_cause if vm.observed.status else None


def observed_status(vm: VM) -> ObservedStatus:
    """Return the status to act on: an unreachable worker or a missing VM hides the last report.

    A domain that runs somewhere without a record hides everything: it may be the VM, and then a command makes a second
    one of it.
    """
    if vm.observed.elsewhere:
        return ObservedStatus.ELSEWHERE
    if vm.desired.worker is None:
        return ObservedStatus.UNREPORTED
    if vm.worker is not None and vm.worker.unreachable_since is not None:
        return ObservedStatus.UNREACHABLE
    if held := _held_status(vm):
        return held
    reported = last_reported_status(vm)
    if reported in ENDS and vm.observed.generation < vm.dispatch.accepted:
        # The worker reported this end before it accepted the newest command, whose effect is not known yet.
        return ObservedStatus.UNREPORTED
    return ObservedStatus.ABSENT if vm.observed.missed_polls and reported is not ObservedStatus.GONE else reported


def _held_status(vm: VM) -> ObservedStatus | None:
    """Return the status of a VM of which its worker reports that somebody else works, or may work, on it."""
    if is_migrated(vm):
        return ObservedStatus.MIGRATED
    if vm.observed.status is not None and vm.observed.status.job and not vm.observed.missed_polls:
        return ObservedStatus.BUSY
    off = last_reported_status(vm) is ObservedStatus.CRASHED and _halt_cause(vm) in LEFT
    return ObservedStatus.SOUGHT if off and vm.observed.elsewhere is None else None


def keeps_disks(vm: VM) -> bool:
    """Return whether the worker of the last report has the only copy of disks of the VM."""
    status, reported = vm.observed.status, last_reported_status(vm)
    if status is None or vm.observed.tombstone is not None or reported is ObservedStatus.FAILED_TO_START:
        return False  # those of a failed start are removed
    return reported is not ObservedStatus.HALTED or any(disk.kept for disk in status.disks.values())


def has_kept_disks(vm: VM) -> bool:
    """Return whether a VM is off, with disks on its worker that a start boots again and a shutdown ends."""
    return last_reported_status(vm) in (ObservedStatus.HALTED, ObservedStatus.CRASHED) and keeps_disks(vm)


def awaits_start(vm: VM) -> bool:
    """Return whether the worker of a VM that shall run has not accepted its last start, a user's or the pusher's."""
    return not vm.status_delivered or (vm.current_dispatch.verb == "start" and not vm.delivered)


def awaits_effect(vm: VM) -> bool:
    """Return whether the last report is older than the command that asked for the desired status, or a later one.

    Without any report, a start may be on its way: the VM will run, also if its user has requested a shutdown since.
    """
    if vm.observed.status is None:
        dispatch = vm.dispatch
        is_under_way = dispatch.verb == "start" and dispatch.sent_at is not None and dispatch.problem is None
        return is_under_way and not vm.observed.missed_polls and vm.observed.tombstone is None
    return not vm.status_delivered or vm.observed.generation < vm.dispatch.accepted
