"""What users may ask of a VM, as functions of values: what is wanted after a verb, or why it does not fit.

And, for the verbs that wait, what came of it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.core.errors import ChangedMeanwhile, Conflict
from master_service.planning.observed import ObservedStatus, keeps_disks, last_reported_status, observed_status
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
    """Run it. On a VM that runs or is on its way: nothing new. After a refusal: a fresh try, at once."""
    under_way = not vm.delivered and vm.current_dispatch.problem is None
    on_its_way = under_way or last_reported_status(vm) in _UP
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and on_its_way


def resume(vm: VM) -> tuple[DesiredStatus, bool]:
    """Let it run on. Only what is on can be resumed."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to resume.", "Start it.")
    return DesiredStatus.RUNNING, vm.desired.status is DesiredStatus.RUNNING and last_reported_status(
        vm
    ) is ObservedStatus.RUNNING


def suspend(vm: VM) -> tuple[DesiredStatus, bool]:
    """Pause it in memory. Only what is on can be paused."""
    if vm.desired.status is DesiredStatus.HALTED or last_reported_status(vm) in _OFF:
        raise Conflict(f"{vm.desired.name} is off: there is nothing to suspend.", "Start it first.")
    return DesiredStatus.PAUSED, vm.desired.status is DesiredStatus.PAUSED and last_reported_status(
        vm
    ) is ObservedStatus.SUSPENDED


def shutdown(vm: VM) -> tuple[DesiredStatus, bool]:
    """Ask its guest to shut down. Asked again, the guest is asked again, unless it is off as wished already."""
    off = last_reported_status(vm) in (ObservedStatus.HALTED, ObservedStatus.SAVING) and vm.delivered
    return DesiredStatus.HALTED, vm.desired.status is DesiredStatus.HALTED and off


def destroy(vm: VM) -> tuple[DesiredStatus, bool]:
    """Discard it. Asked again: nothing new, the pusher is at it until its worker confirms."""
    return DesiredStatus.DESTROYED, vm.desired.status is DesiredStatus.DESTROYED


VERBS: Final[Mapping[str, Callable[[VM], tuple[DesiredStatus, bool]]]] = {
    "start": start,
    "suspend": suspend,
    "resume": resume,
    "shutdown": shutdown,
    "destroy": destroy,
}
"""verb -> (what is wanted after it, whether that is so already). Each raises Conflict where it does not fit."""


def apply_action(vm: VM, verb: str, now: datetime, if_version: int | None = None) -> DesiredState:
    """What is wanted once a user asked for `verb`: the same value when there is nothing new in it.

    Raises Conflict when the verb does not fit what the VM is, ChangedMeanwhile when that is not `if_version` any more.
    """
    _refuse_destroyed(vm, verb)
    require_version(vm, if_version)
    wanted, already = VERBS[verb](vm)
    return vm.desired if already else _changed(vm, now, status=wanted)


def outcome_of(vm: VM, verb: str) -> Outcome | None:
    """What a verb that blocks came to: done, failed, refused or overtaken; None: nobody knows yet.

    Only a report from after its worker took the newest wish tells: an older one, or one of a worker that is silent now,
    may show the state that was asked for before anybody carried anything out.
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
            if vm.desired.status is not _WANTS[verb]:
                return Outcome.SUPERSEDED
            if vm.observed.generation >= vm.desired.user_generation and (
                outcome := outcome_of_status(verb, observed_status(vm))
            ):
                return outcome
    return Outcome.REFUSED if vm.current_dispatch.refused_for_good else None


_WANTS: Final = {"suspend": DesiredStatus.PAUSED, "resume": DesiredStatus.RUNNING}


def apply_modify(
    vm: VM,
    settings: Mapping[str, str],
    now: datetime,
    if_version: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> DesiredState:
    """What is wanted once a user changed `hda_save_to`, `hdb_save_to`, `cd_image`, or its labels (no command).

    Raises ChangedMeanwhile when somebody else has changed the VM since `if_version`, Conflict when it has no such disk.
    """
    _refuse_destroyed(vm, "modify")
    require_version(vm, if_version)
    if settings.get("hdb_save_to") and not vm.desired.spec.hdb_image:
        raise Conflict(f"{vm.desired.name} has no second disk: hdb_save_to says nothing.", "Leave hdb_save_to out.")
    spec = msgspec.structs.replace(vm.desired.spec, **settings)
    if labels is not None and labels != vm.desired.labels:
        vm = replace(vm, desired=replace(vm.desired, labels=dict(labels), changed_at=now))
    return vm.desired if spec == vm.desired.spec else _changed(vm, now, spec=spec)


def require_version(vm: VM, if_version: int | None) -> None:
    """Raise ChangedMeanwhile when somebody changed the VM since `if_version`; None: whatever it is."""
    if if_version is not None and if_version != vm.desired.version:
        raise ChangedMeanwhile(
            f"{vm.desired.name} was changed meanwhile: its version is {vm.desired.version}, not {if_version}."
        )


def require_unreachable(worker: Worker) -> None:
    """Raise Conflict for a worker that answers: it is not off, whatever somebody says."""
    if worker.unreachable_since is None:
        raise Conflict(
            f"{worker.id} answers: it is not off, and its VMs may run.",
            "Switch it off for certain first; or drain it, and shut its VMs down.",
        )


def evacuate(vm: VM, now: datetime) -> DesiredState | None:
    """What is wanted of a VM once its worker is off for certain; None: it stays where it is.

    Who wants it to run gets it started on another worker. A disk that is on this one and not saved yet keeps its VM
    there, unless it is wanted running or destroyed; so does a pin.
    """
    assumed, seen = vm.desired, last_reported_status(vm)
    if assumed.status is DesiredStatus.DESTROYED:
        return replace(assumed, destroyed_at=now)
    ended = seen in (ObservedStatus.HALTED, ObservedStatus.SAVING, ObservedStatus.FAILED_TO_SAVE) and vm.delivered
    if assumed.pin is not None or (ended and keeps_disks(vm)):
        return None
    if assumed.status is DesiredStatus.RUNNING and not (ended and assumed.spec.run_policy != "always"):
        return _changed(vm, now, worker=None)
    if assumed.status is DesiredStatus.PAUSED or ended or seen is ObservedStatus.UNREPORTED:
        # What was paused in memory is lost with it: whoever wants it back starts it.
        return _changed(vm, now, worker=None, status=DesiredStatus.HALTED)
    return None


def _refuse_destroyed(vm: VM, verb: str) -> None:
    if vm.desired.status is DesiredStatus.DESTROYED and verb != "destroy":
        raise Conflict(f"{vm.desired.name} is destroyed, or being destroyed.", "Create another VM.")


def _changed(vm: VM, now: datetime, **changes: Any) -> DesiredState:
    # Above what the worker was told, too: after a database was restored from a backup, that may be more than we know.
    generation = max(vm.desired.generation, vm.observed.generation, vm.dispatch.accepted) + 1
    return replace(vm.desired, generation=generation, user_generation=generation, changed_at=now, **changes)
