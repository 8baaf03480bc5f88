"""What users may ask of a VM, as functions of values: what is wanted after a verb, or why the verb does not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from typing import Any, Final

import msgspec

from master_service.errors import Conflict
from master_service.facts import VM, Assumed, Wanted
from master_service.seen import Seen, last_seen

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


def asked_for(vm: VM, verb: str, now: datetime) -> Assumed:
    """What is wanted once a user asked for `verb`: the same value when there is nothing new in it.

    Raises Conflict when the verb does not fit what the VM is.
    """
    _refuse_destroyed(vm, verb)
    wanted, already = VERBS[verb](vm)
    return vm.assumed if already else _changed(vm, now, wanted=wanted)


def modified(vm: VM, settings: Mapping[str, str], now: datetime, if_version: int | None = None) -> Assumed:
    """What is wanted once a user changed `hda_save_to`, `hdb_save_to` or `cd_image`.

    Raises Conflict when somebody else has changed the VM since `if_version`, or it has no such disk.
    """
    _refuse_destroyed(vm, "modify")
    if if_version is not None and if_version != vm.assumed.version:
        raise Conflict(
            f"{vm.assumed.name} was changed by somebody else: its version is {vm.assumed.version}, not {if_version}."
        )
    if settings.get("hdb_save_to") and not vm.assumed.spec.hdb_image:
        raise Conflict(f"{vm.assumed.name} has no second disk: hdb_save_to says nothing.", "Leave hdb_save_to out.")
    spec = msgspec.structs.replace(vm.assumed.spec, **settings)
    return vm.assumed if spec == vm.assumed.spec else _changed(vm, now, spec=spec)


def _refuse_destroyed(vm: VM, verb: str) -> None:
    if vm.assumed.wanted is Wanted.DESTROYED and verb != "destroy":
        raise Conflict(f"{vm.assumed.name} is destroyed, or being destroyed.", "Create another VM.")


def _changed(vm: VM, now: datetime, **changes: Any) -> Assumed:
    # Above what the worker was told, too: after a database was restored from a backup, that may be more than we know.
    generation = max(vm.assumed.generation, vm.real.generation, vm.push.accepted) + 1
    return replace(vm.assumed, generation=generation, asked=generation, changed_at=now, **changes)
