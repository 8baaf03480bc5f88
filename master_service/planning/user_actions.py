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
from master_service.planning.observed import Seen, keeps_disks, last_seen, seen_of
from master_service.planning.outcomes import Outcome, came_to
from master_service.planning.vm import VM, Assumed, Wanted, Worker

_UP: Final = frozenset({Seen.STARTING, Seen.INSTALLING, Seen.RUNNING})
_OFF: Final = frozenset({Seen.SAVING, Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.FAILED_TO_SAVE, Seen.GONE})


def start(vm: VM) -> tuple[Wanted, bool]:
    """Run it. On a VM that runs or is on its way: nothing new. After a refusal: a fresh try, at once."""
    under_way = not vm.delivered and vm.current_push.problem is None
    on_its_way = under_way or last_seen(vm) in _UP
    return Wanted.RUNNING, vm.assumed.wanted is Wanted.RUNNING and on_its_way


def resume(vm: VM) -> tuple[Wanted, bool]:
    """Let it run on. Only what is on can be resumed."""
    if vm.assumed.wanted is Wanted.HALTED or last_seen(vm) in _OFF:
        raise Conflict(f"{vm.assumed.name} is off: there is nothing to resume.", "Start it.")
    return Wanted.RUNNING, vm.assumed.wanted is Wanted.RUNNING and last_seen(vm) is Seen.RUNNING


def suspend(vm: VM) -> tuple[Wanted, bool]:
    """Pause it in memory. Only what is on can be paused."""
    if vm.assumed.wanted is Wanted.HALTED or last_seen(vm) in _OFF:
        raise Conflict(f"{vm.assumed.name} is off: there is nothing to suspend.", "Start it first.")
    return Wanted.PAUSED, vm.assumed.wanted is Wanted.PAUSED and last_seen(vm) is Seen.SUSPENDED


def shutdown(vm: VM) -> tuple[Wanted, bool]:
    """Ask its guest to shut down. Asked again, the guest is asked again, unless it is off as wished already."""
    off = last_seen(vm) in (Seen.HALTED, Seen.SAVING) and vm.delivered
    return Wanted.HALTED, vm.assumed.wanted is Wanted.HALTED and off


def destroy(vm: VM) -> tuple[Wanted, bool]:
    """Discard it. Asked again: nothing new, the pusher is at it until its worker confirms."""
    return Wanted.DESTROYED, vm.assumed.wanted is Wanted.DESTROYED


VERBS: Final[Mapping[str, Callable[[VM], tuple[Wanted, bool]]]] = {
    "start": start,
    "suspend": suspend,
    "resume": resume,
    "shutdown": shutdown,
    "destroy": destroy,
}
"""verb -> (what is wanted after it, whether that is so already). Each raises Conflict where it does not fit."""


def asked_for(vm: VM, verb: str, now: datetime, if_version: int | None = None) -> Assumed:
    """What is wanted once a user asked for `verb`: the same value when there is nothing new in it.

    Raises Conflict when the verb does not fit what the VM is, ChangedMeanwhile when that is not `if_version` any more.
    """
    _refuse_destroyed(vm, verb)
    demand_version(vm, if_version)
    wanted, already = VERBS[verb](vm)
    return vm.assumed if already else _changed(vm, now, wanted=wanted)


def outcome_of(vm: VM, verb: str) -> Outcome | None:
    """What a verb that blocks came to: done, failed, refused or overtaken; None: nobody knows yet.

    Only a report from after its worker took the newest wish tells: an older one, or one of a worker that is silent now,
    may show the state that was asked for before anybody carried anything out.
    """
    match verb:
        case "destroy":
            if vm.assumed.destroyed_at is not None:
                return Outcome.DONE
        case "save_retry":
            if vm.assumed.wanted is Wanted.DESTROYED:
                return Outcome.OVERTAKEN
            return Outcome.DONE if last_seen(vm) is Seen.HALTED else None
        case _:
            if vm.assumed.wanted is not _WANTS[verb]:
                return Outcome.OVERTAKEN
            if vm.real.generation >= vm.assumed.asked and (outcome := came_to(verb, seen_of(vm))):
                return outcome
    return Outcome.REFUSED if vm.current_push.refused_for_good else None


_WANTS: Final = {"suspend": Wanted.PAUSED, "resume": Wanted.RUNNING}


def modified(
    vm: VM,
    settings: Mapping[str, str],
    now: datetime,
    if_version: int | None = None,
    labels: Mapping[str, str] | None = None,
) -> Assumed:
    """What is wanted once a user changed `hda_save_to`, `hdb_save_to`, `cd_image`, or its labels (no command).

    Raises ChangedMeanwhile when somebody else has changed the VM since `if_version`, Conflict when it has no such disk.
    """
    _refuse_destroyed(vm, "modify")
    demand_version(vm, if_version)
    if settings.get("hdb_save_to") and not vm.assumed.spec.hdb_image:
        raise Conflict(f"{vm.assumed.name} has no second disk: hdb_save_to says nothing.", "Leave hdb_save_to out.")
    spec = msgspec.structs.replace(vm.assumed.spec, **settings)
    if labels is not None and labels != vm.assumed.labels:
        vm = replace(vm, assumed=replace(vm.assumed, labels=dict(labels), changed_at=now))
    return vm.assumed if spec == vm.assumed.spec else _changed(vm, now, spec=spec)


def demand_version(vm: VM, if_version: int | None) -> None:
    """Raise ChangedMeanwhile when somebody changed the VM since `if_version`; None: whatever it is."""
    if if_version is not None and if_version != vm.assumed.version:
        raise ChangedMeanwhile(
            f"{vm.assumed.name} was changed meanwhile: its version is {vm.assumed.version}, not {if_version}."
        )


def silent(worker: Worker) -> None:
    """Raise Conflict for a worker that answers: it is not off, whatever somebody says."""
    if worker.unreachable_since is None:
        raise Conflict(
            f"{worker.id} answers: it is not off, and its VMs may run.",
            "Switch it off for certain first; or drain it, and shut its VMs down.",
        )


def taken_away(vm: VM, now: datetime) -> Assumed | None:
    """What is wanted of a VM once its worker is off for certain; None: it stays where it is.

    Who wants it to run gets it started on another worker. A disk that is on this one and not saved yet keeps its VM
    there, unless it is wanted running or destroyed; so does a pin.
    """
    assumed, seen = vm.assumed, last_seen(vm)
    if assumed.wanted is Wanted.DESTROYED:
        return replace(assumed, destroyed_at=now)
    ended = seen in (Seen.HALTED, Seen.SAVING, Seen.FAILED_TO_SAVE) and vm.delivered
    if assumed.pin is not None or (ended and keeps_disks(vm)):
        return None
    if assumed.wanted is Wanted.RUNNING and not (ended and assumed.spec.run_policy != "always"):
        return _changed(vm, now, worker=None)
    if assumed.wanted is Wanted.PAUSED or ended or seen is Seen.UNREPORTED:
        # What was paused in memory is lost with it: whoever wants it back starts it.
        return _changed(vm, now, worker=None, wanted=Wanted.HALTED)
    return None


def _refuse_destroyed(vm: VM, verb: str) -> None:
    if vm.assumed.wanted is Wanted.DESTROYED and verb != "destroy":
        raise Conflict(f"{vm.assumed.name} is destroyed, or being destroyed.", "Create another VM.")


def _changed(vm: VM, now: datetime, **changes: Any) -> Assumed:
    # Above what the worker was told, too: after a database was restored from a backup, that may be more than we know.
    generation = max(vm.assumed.generation, vm.real.generation, vm.push.accepted) + 1
    return replace(vm.assumed, generation=generation, asked=generation, changed_at=now, **changes)
