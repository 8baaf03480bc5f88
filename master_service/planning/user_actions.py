"""The verbs of users as functions of values: the desired state after a verb, or why it does not fit.

For blocking verbs also their outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.core.errors import ChangedMeanwhile, Conflict, Refused
from master_service.planning.actions import capabilities_of, changed_names, lost_on_old_worker
from master_service.planning.disk_ends import has_disks_to_end, starts_from_image, stored_target
from master_service.planning.observed import (
    ON,
    ObservedStatus,
    awaits_start,
    has_kept_disks,
    is_migrated,
    keeps_disks,
    last_reported_status,
    observed_status,
)
from master_service.planning.outcomes import Outcome, outcome_of_status
from master_service.planning.vm import VM, DesiredState, DesiredStatus, Worker
from worker_service.contract import Code, Spec, unsupported, unsupported_while_on
from worker_service.contract.plans import WhileOn

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
    if last_reported_status(vm) is ObservedStatus.FAILED_TO_SAVE:
        raise Conflict(
            f"The disks of {vm.desired.name} could not be saved, and a start would leave them behind. They are safe in "
            f"failed_to_save on {vm.desired.worker}.",
            "Save them first: save-retry, after you removed the cause; modify can name another place. Then start it.",
        )
    in_progress = awaits_start(vm) and vm.current_dispatch.problem is None
    on_its_way = in_progress or last_reported_status(vm) in _UP
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and on_its_way


def resume(vm: VM) -> tuple[DesiredStatus, bool]:
    """Resume it, which needs a VM that is on."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to resume.", "Start it.")
    if last_reported_status(vm) is not ObservedStatus.SUSPENDED:
        require_can(vm, "suspend")
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and last_reported_status(
        vm
    ) is ObservedStatus.RUNNING


def suspend(vm: VM) -> tuple[DesiredStatus, bool]:
    """Pause it in memory, which needs a VM that is on."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to suspend.", "Start it first.")
    require_can(vm, "suspend")
    return DesiredStatus.PAUSED, vm.desired.status is DesiredStatus.PAUSED and last_reported_status(
        vm
    ) is ObservedStatus.SUSPENDED


def shutdown(vm: VM) -> tuple[DesiredStatus, bool]:
    """Ask its guest to shut down, also a second time, unless it is already off."""
    if (last_reported_status(vm) in ON or has_kept_disks(vm)) and (disks := lost_on_old_worker(vm)):
        raise Conflict(
            f"{vm.desired.worker} has a version of Saltern that would discard {disks} of {vm.desired.name} then.",
            "Upgrade that worker, or say what becomes of the disk: modify can name a place, and '' discards it.",
        )
    off = last_reported_status(vm) in (ObservedStatus.HALTED, ObservedStatus.SAVING) and vm.status_delivered
    return DesiredStatus.HALTED, vm.desired.status is DesiredStatus.HALTED and off and not has_disks_to_end(vm)


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


def apply_action(
    vm: VM, verb: str, now: datetime, if_version: int | None = None, *, from_image: bool = False
) -> DesiredState:
    """Return the desired state after `verb`: the same value when nothing changes.

    `from_image` asks a start for a new instance from the images instead of the last save. Raises Conflict when the verb
    does not fit the VM, and ChangedMeanwhile when its version is not `if_version`.
    """
    _refuse_destroyed(vm, verb)
    require_version(vm, if_version)
    if from_image:
        _require_off_and_ended(vm)
    status, unchanged = VERBS[verb](vm)
    if unchanged and not (verb == "start" and _begins_otherwise(vm, from_image=from_image)):
        return vm.desired
    return _changed(vm, now, status=status, **({"from_image": from_image} if verb == "start" else {}))


def _begins_otherwise(vm: VM, *, from_image: bool) -> bool:
    """Return whether a start that waits to be sent shall begin with something else now.

    Raises Conflict if it has been sent: its worker may have begun, and goes on with that.
    """
    if from_image is vm.desired.from_image or not vm.observed.saves or not awaits_start(vm):
        return False
    if vm.current_dispatch.sent_at is None:
        return True
    if from_image:
        raise Conflict(
            f"{vm.desired.name} is being started from its last save.",
            "Shut it down first; then start it from its image.",
        )
    return False


def _require_off_and_ended(vm: VM) -> None:
    """Raise Conflict for a VM that cannot start from its images: it is on, or its worker keeps its disks."""
    reported = last_reported_status(vm)
    if reported in (ObservedStatus.UNREPORTED, ObservedStatus.FAILED_TO_SAVE):
        return
    if reported not in _OFF:
        raise Conflict(f"{vm.desired.name} is {reported.value}: only a VM that is off can start from its image.")
    if keeps_disks(vm):
        raise Conflict(
            f"{vm.desired.worker} keeps the disks of {vm.desired.name}, which a start from the image would drop.",
            "Give modify a place to save them to, or '' to discard them, and shut the VM down. Then start it.",
        )


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
            if vm.observed.generation >= vm.desired.status_generation and (
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

    Raises ChangedMeanwhile when its version is not `if_version`, Conflict when the VM has no second disk, and Refused
    when its hypervisor cannot change the CD now.
    """
    _refuse_destroyed(vm, "modify")
    require_version(vm, if_version)
    if settings.get("hdb_save_to") and not vm.desired.spec.hdb_image:
        raise Conflict(f"{vm.desired.name} has no second disk: hdb_save_to has no meaning.", "Leave hdb_save_to out.")
    spec = msgspec.structs.replace(vm.desired.spec, **{name: stored_target(value) for name, value in settings.items()})
    if (spec.cd_image or "") != (vm.desired.spec.cd_image or ""):
        _require_cd(vm, spec)
    if labels is not None and labels != vm.desired.labels:
        vm = replace(vm, desired=replace(vm.desired, labels=dict(labels), changed_at=now))
    if protected is not None and protected is not vm.desired.protected:
        vm = replace(vm, desired=replace(vm.desired, protected=protected, changed_at=now))
    return vm.desired if spec == vm.desired.spec else _changed(vm, now, spec=spec)


def require_can(vm: VM, what: WhileOn) -> None:
    """Raise Refused if the VM's hypervisor cannot do that on its worker, in the worker's own words.

    Without `capabilities_of` the worker decides.
    """
    has = capabilities_of(vm)
    if has is not None and (why := unsupported_while_on(what, vm.desired.spec.hypervisor, has)):
        raise _unsupported(f"{vm.desired.name} on {vm.desired.worker}: {why}.")


def _require_cd(vm: VM, spec: Spec) -> None:
    """Raise Refused if the VM's hypervisor cannot give it the CD of `spec` now. A VM that is off gets it at its start.

    A CD is ejected under the same conditions, but needs no drive.
    """
    has = capabilities_of(vm)
    if has is not None and not has.cd and spec.cd_image:
        raise _unsupported(f"{vm.desired.name}: {vm.desired.worker} {unsupported(spec, {spec.hypervisor: has})}.")
    dispatch = vm.current_dispatch
    starts = dispatch.verb == "start" and dispatch.sent_at is not None and awaits_start(vm)
    if starts or last_reported_status(vm) not in _OFF | {ObservedStatus.UNREPORTED}:
        require_can(vm, "cd_image")


def _unsupported(message: str) -> Refused:
    return Refused(message, Code.UNSUPPORTED, "Nothing was changed.")


def take_back(vm: VM) -> DesiredState:
    """Return the desired state without the changes that its worker refuses: the values that the worker holds.

    If a shutdown waits for them, the disk stays on the worker: it must not end otherwise than its user asked.
    """
    reported = vm.observed.status.spec if vm.observed.status else None
    names = changed_names(vm)
    if reported is None or not names:
        return vm.desired
    waits = vm.desired.status is DesiredStatus.HALTED and (last_reported_status(vm) in ON or _ends_kept_disks(vm))
    values = {name: None if waits and name != "cd_image" else getattr(reported, name) for name in names}
    spec = msgspec.structs.replace(vm.desired.spec, **values)
    # With a generation of its own: what the worker answers to it says nothing about the refused change.
    return replace(vm.desired, spec=spec, version=vm.desired.version + 1, generation=vm.desired.generation + 1)


def _ends_kept_disks(vm: VM) -> bool:
    """Return whether a shutdown is still to end disks that its worker keeps: the last request, or one before it."""
    return has_kept_disks(vm) and (
        not vm.status_delivered or vm.desired.user_generation == vm.desired.status_generation
    )


def pending_settings(vm: VM) -> list[str]:
    """Return the changed parameters that its worker has not accepted. A VM that is off gets them when it starts."""
    if vm.delivered or vm.desired.status is DesiredStatus.DESTROYED:
        return []
    is_there = last_reported_status(vm) in ON or keeps_disks(vm)
    return changed_names(vm) if is_there else []


def can_confirm_soon(vm: VM) -> bool:
    """Return whether a change waits for an answer of the worker that may come soon."""
    return bool(pending_settings(vm)) and observed_status(vm) is not ObservedStatus.UNREACHABLE


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
    ends = (ObservedStatus.HALTED, ObservedStatus.SAVING, ObservedStatus.FAILED_TO_SAVE)
    ended = reported in ends and vm.status_delivered
    if desired.pin is not None or (ended and keeps_disks(vm)) or is_migrated(vm):
        return None
    if desired.status is DesiredStatus.RUNNING and not (ended and desired.spec.run_policy != "always"):
        return _changed(vm, now, worker=None, status=desired.status)
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
    if "status" in changes:
        # The choice of the images ends with the first save of the life that began with them.
        changes = {"from_image": starts_from_image(vm), "status_generation": generation, **changes}
    return replace(vm.desired, generation=generation, user_generation=generation, changed_at=now, **changes)
