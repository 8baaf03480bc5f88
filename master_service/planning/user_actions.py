"""The verbs of users as functions of values: the desired state after a verb, or why it does not fit.

For blocking verbs also their outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.core.errors import ChangedMeanwhile, Conflict
from master_service.planning.observed import (
    ObservedStatus,
    is_migrated,
    keeps_disks,
    last_reported_status,
    observed_status,
)
from master_service.planning.outcomes import Outcome, outcome_of_status
from master_service.planning.vm import VM, DesiredState, DesiredStatus, Worker

_UP: Final = frozenset({ObservedStatus.STARTING, ObservedStatus.INSTALLING, ObservedStatus.RUNNING})
_OFF: Final = frozenset(
    {
        ObservedStatus.SAVING,
        ObservedStatus.HALTED,
        ObservedStatus.CRASHED,
        ObservedStatus.FAILED_TO_START,
        ObservedStatus.FAILED_TO_SAVE,
        ObservedStatus.GONE,
    }
)


def start(vm: VM) -> tuple[DesiredStatus, bool]:
    """Run it. For a VM that runs or is starting this is no change; after a refusal it is a new try at once."""
    in_progress = not vm.delivered and vm.current_dispatch.problem is None
    on_its_way = in_progress or last_reported_status(vm) in _UP
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and on_its_way


def resume(vm: VM) -> tuple[DesiredStatus, bool]:
    """Resume it, which needs a VM that is on."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to resume.", "Start it.")
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and last_reported_status(
        vm
    ) is ObservedStatus.RUNNING


def suspend(vm: VM) -> tuple[DesiredStatus, bool]:
    """Pause it in memory, which needs a VM that is on."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to suspend.", "Start it first.")
    return DesiredStatus.PAUSED, vm.desired.status is DesiredStatus.PAUSED and last_reported_status(
        vm
    ) is ObservedStatus.SUSPENDED


def shutdown(vm: VM) -> tuple[DesiredStatus, bool]:
    """Ask its guest to shut down, also a second time, unless it is already off."""
    off = last_reported_status(vm) in (ObservedStatus.HALTED, ObservedStatus.SAVING) and vm.delivered
    return DesiredStatus.HALTED, vm.desired.status is DesiredStatus.HALTED and off


def destroy(vm: VM) -> tuple[DesiredStatus, bool]:
    """Discard it. A repeated request is no change: the pusher continues until the worker confirms."""
    if vm.desired.protected and vm.desired.status is not DesiredStatus.DESTROYED:
        name = vm.desired.name
        raise Conflict(f"{name} is protected, so it is not destroyed.", f"Lift that first: saltern unprotect {name}.")
    return DesiredStatus.DESTROYED, vm.desired.status is DesiredStatus.DESTROYED


VERBS: Final[Mapping[str, Callable[[VM], tuple[DesiredStatus, bool]]]] = {
    "start": start,
    "suspend": suspend,
    "resume": resume,
    "shutdown": shutdown,
    "destroy": destroy,
}
"""verb -> (desired status, whether nothing changes). Each raises Conflict where the verb does not fit."""


def apply_action(vm: VM, verb: str, now: datetime, if_version: int | None = None) -> DesiredState:
    """Return the desired state after `verb`: the same value when nothing changes.

    Raises Conflict when the verb does not fit the VM, and ChangedMeanwhile when its version is not `if_version`.
    """
    _refuse_destroyed(vm, verb)
    require_version(vm, if_version)
    status, unchanged = VERBS[verb](vm)
    return vm.desired if unchanged else _changed(vm, now, status=status)


def outcome_of(vm: VM, verb: str) -> Outcome | None:
    """Return the outcome of a blocking verb: done, failed, refused or superseded, or None while it is unknown.

    Only a report from after the worker accepted the newest command counts. An older report, or one of a worker that is
    unreachable now, may show the desired status although the command has not been carried out.
    """
    match verb:
        case "destroy" if vm.desired.destroyed_at is not None:
            return Outcome.DONE
        case "destroy":
            pass
        case "save_retry":
            if vm.desired.status is DesiredStatus.DESTROYED:
                return Outcome.SUPERSEDED
            return Outcome.DONE if last_reported_status(vm) is ObservedStatus.HALTED else None
        case _:
            if vm.desired.status is not _DESIRED_STATUS[verb]:
                return Outcome.SUPERSEDED
            if vm.observed.generation >= vm.desired.user_generation and (
                outcome := outcome_of_status(verb, observed_status(vm))
            ):
                return outcome
    return Outcome.REFUSED if vm.current_dispatch.refused_for_good else None


_DESIRED_STATUS: Final = {"suspend": DesiredStatus.PAUSED, "resume": DesiredStatus.RUNNING}


def apply_modify(  # noqa: PLR0913 - what can be changed
    vm: VM,
    settings: Mapping[str, str],
    now: datetime,
    if_version: int | None = None,
    labels: Mapping[str, str] | None = None,
    *,
    protected: bool | None = None,
) -> DesiredState:
    """Return the desired state after a change of modifiable parameters, or of labels or protection.

    The last two need no command: workers do not get them.

    Raises ChangedMeanwhile when its version is not `if_version`, and Conflict when the VM has no second disk.
    """
    _refuse_destroyed(vm, "modify")
    require_version(vm, if_version)
    if settings.get("hdb_save_to") and not vm.desired.spec.hdb_image:
        raise Conflict(f"{vm.desired.name} has no second disk: hdb_save_to has no meaning.", "Leave hdb_save_to out.")
    spec = msgspec.structs.replace(vm.desired.spec, **settings)
    if labels is not None and labels != vm.desired.labels:
        vm = replace(vm, desired=replace(vm.desired, labels=dict(labels), changed_at=now))
    if protected is not None and protected is not vm.desired.protected:
        vm = replace(vm, desired=replace(vm.desired, protected=protected, changed_at=now))
    return vm.desired if spec == vm.desired.spec else _changed(vm, now, spec=spec)


def require_version(vm: VM, if_version: int | None) -> None:
    """Raise ChangedMeanwhile when the version is not `if_version`. With None any version is fine."""
    if if_version is not None and if_version != vm.desired.version:
        raise ChangedMeanwhile(
            f"{vm.desired.name} was changed since then: its version is {vm.desired.version}, not {if_version}."
        )


def require_unreachable(worker: Worker) -> None:
    """Raise Conflict when the worker answers, because then it is not switched off."""
    if worker.unreachable_since is None:
        raise Conflict(
            f"{worker.id} answers: it is not off, and its VMs may run.",
            "Switch it off first, or drain it and shut its VMs down.",
        )


def evacuate(vm: VM, now: datetime) -> DesiredState | None:
    """Return the desired state of a VM whose worker is certainly off, or None if it stays assigned.

    A VM that should run starts on another worker. A pin keeps a VM there. An unsaved disk does so too, unless the VM
    should run or be destroyed. A VM that was migrated away stays assigned: it may run where it is now.
    """
    desired, reported = vm.desired, last_reported_status(vm)
    if desired.status is DesiredStatus.DESTROYED:
        return replace(desired, destroyed_at=now)
    ended = reported in (ObservedStatus.HALTED, ObservedStatus.SAVING, ObservedStatus.FAILED_TO_SAVE) and vm.delivered
    if desired.pin is not None or (ended and keeps_disks(vm)) or is_migrated(vm):
        return None
    if desired.status is DesiredStatus.RUNNING and not (ended and desired.spec.run_policy != "always"):
        return _changed(vm, now, worker=None)
    if desired.status is DesiredStatus.PAUSED or ended or reported is ObservedStatus.UNREPORTED:
        # The memory of a paused VM is lost with the worker. Its user has to start it again.
        return _changed(vm, now, worker=None, status=DesiredStatus.HALTED)
    return None


def _refuse_destroyed(vm: VM, verb: str) -> None:
    if vm.desired.status is DesiredStatus.DESTROYED and verb != "destroy":
        raise Conflict(f"{vm.desired.name} is destroyed, or being destroyed.", "Create another VM.")


def _changed(vm: VM, now: datetime, **changes: Any) -> DesiredState:
    # Also above the generations of the worker: a database restored from a backup may not know the newest ones.
    generation = max(vm.desired.generation, vm.observed.generation, vm.dispatch.accepted) + 1
    return replace(vm.desired, generation=generation, user_generation=generation, changed_at=now, **changes)
