"""The rules of commands: each returns the changed record of a VM, or refuses the command.

All are functions of values. A verb passes its rule to `RecordStore.update`, which applies it to the newest record under
the record's lock. Every rule raises Refused for a command whose generation is older than the record's.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from worker_service.contract import CONTINUABLE_HALTS, KEEP, TRIES, Code, HaltCause, Spec, Status
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import DomainState
from worker_service.state.lifecycle import OFF, after_halt, is_intended, kept_message, status_of
from worker_service.state.record import (
    ENDING,
    NEW_INSTANCE_FIELDS,
    NOT_SAVED,
    OF_KEPT_DISKS,
    SETTLED,
    STARTING,
    Phase,
    Record,
    move,
    with_disk,
)

_BEFORE_SAVE = STARTING | {Phase.UP, Phase.KEPT}
_ON = (Status.INSTALLING, Status.RUNNING, Status.SUSPENDED)
TargetVersions = Mapping[str, str | None]
"""What lies where a disk is to be saved, by disk."""
NO_ORIGIN: Final[Mapping[str, str]] = {}


def after_start(  # noqa: PLR0913, PLR0917 - what a command and the time say
    record: Record,
    spec: Spec,
    generation: int | None,
    now: datetime,
    target_versions: TargetVersions,
    owner: str = "",
    *,
    origin: Mapping[str, str] = NO_ORIGIN,
    saved_memory: bool = False,
) -> Record:
    """Return the record of a VM that exists already, after one more `start`.

    A repeated start changes only the generation and the owner. A settled VM starts again: from the disks that were
    kept, or as a new instance from its images, or from the saves that `origin` names instead. `starts_again` tells a
    start from a repetition. `saved_memory`: the boot will resume the memory of the last run, which fits no other
    parameters.
    """
    latest = _latest_generation(record, generation)
    if record.phase is Phase.CLEANING and record.problem and record.tries >= TRIES:
        raise Refused(f"{record.name!r} is halted, but what is left of it cannot be removed yet. {record.problem}")
    if record.phase not in SETTLED or (generation is not None and generation == record.generation):
        _require_same_spec(record, spec)
        return _with_owner(msgspec.structs.replace(record, generation=latest), owner)
    _require_not_migrated(record)
    if record.phase is Phase.SAVE_FAILED:
        raise Refused(f"The disks of {record.name!r} could not be saved. Call save_retry first, or destroy it.")
    record = _with_owner(record, owner)
    changes = {"generation": latest, "spec": spec, "shutdown_asked": False}
    if record.phase is Phase.KEPT:
        _require_kept_disks(record, spec)
        if saved_memory:
            _require_same_spec(record, spec)
        started = move(record, Phase.BUILDING, now, **changes)
        return _with_new_targets(started, record, target_versions)
    return move(record, Phase.FETCHING, now, **changes, **{**NEW_INSTANCE_FIELDS, "origin": dict(origin)})


def starts_again(before: Record, after: Record) -> bool:
    """Return whether `after_start` started a settled VM again."""
    return before.phase in SETTLED and after.phase in STARTING


def after_modify(  # noqa: PLR0913 - what a command says, and what lies there
    record: Record,
    changes: Mapping[str, str],
    generation: int | None,
    target_versions: TargetVersions,
    owner: str = "",
    *,
    folder: str = "",
) -> Record:
    """Return the record with changed parameters. Their names come from `contract.MODIFIABLE`; `KEEP` is absent.

    If its disks are kept in `folder`, its message says what a shutdown does to them now.
    """
    latest = _latest_generation(record, generation)
    if record.phase not in ({Phase.UP} if "cd_image" in changes else _BEFORE_SAVE | {Phase.SAVE_FAILED}):
        raise Refused(f"{record.name!r} is {record.phase} and cannot be modified like this now. `status` says more.")
    if "cd_image" in changes and record.installing:
        raise Refused(f"{record.name!r} is installing: its CD can be changed once that is done.")
    spec = msgspec.structs.replace(
        record.spec, **{name: None if value == KEEP else value for name, value in changes.items()}
    )
    changed = msgspec.structs.replace(record, spec=spec, generation=latest, tries=0, next_try_at=None, problem=None)
    changed = _with_owner(_with_new_targets(changed, record, target_versions), owner)
    cause = record.halt_cause or HaltCause.UNKNOWN
    if record.phase is not Phase.KEPT or cause in CONTINUABLE_HALTS or not record.message.startswith(OFF):
        return changed
    return msgspec.structs.replace(changed, message=kept_message(changed, cause, folder))


def after_suspend_or_resume(record: Record, domain: DomainState, generation: int | None) -> Record:
    """Return the record of a VM that is on. The hypervisor alone knows whether it is paused."""
    status = status_of(record, domain)
    if record.phase is not Phase.UP or status not in _ON:
        now = record.phase if status in _ON else status
        raise Refused(f"{record.name!r} is {now}: only a VM that runs can be suspended or resumed.")
    return msgspec.structs.replace(record, generation=_latest_generation(record, generation))


def after_shutdown(record: Record, generation: int | None, now: datetime, folder: str = "") -> Record:
    """Return the record of a VM that is to shut down. If it is off with kept disks, they are saved or discarded.

    With nothing to save and disks that stay in `folder`, it is settled already, and its next start is not due.
    """
    record = msgspec.structs.replace(record, generation=_latest_generation(record, generation))
    if record.phase is Phase.KEPT:
        _require_not_migrated(record)
        ending = after_halt(record, HaltCause.OPERATOR)
        if ending is not Phase.KEPT:
            return move(record, ending, now, halt_cause=HaltCause.OPERATOR)
        if is_intended(record, record.halt_cause):
            return record
        message = kept_message(record, HaltCause.OPERATOR, folder)
        return msgspec.structs.replace(record, halt_cause=HaltCause.OPERATOR, message=message, problem=None)
    if record.phase is Phase.UP or (record.phase in STARTING and not record.shutdown_asked):
        # A repeated shutdown presses the button again: the guest may have been too busy to notice the first press.
        return msgspec.structs.replace(record, shutdown_asked=True, tries=0, next_try_at=None, problem=None)
    return record


def after_save_retry(record: Record, generation: int | None, now: datetime) -> Record:
    """Return the record of a VM whose disks are saved again, at once where a try is pending."""
    latest = _latest_generation(record, generation)
    if record.phase in ENDING | {Phase.CLEANING}:
        return msgspec.structs.replace(record, next_try_at=None)
    if record.phase is not Phase.SAVE_FAILED:
        raise Refused(f"{record.name!r} has not failed to save: it is {record.phase}. There is nothing to retry.")
    return move(record, Phase.FLATTENING, now, generation=latest)


def after_destroy(record: Record, generation: int | None, now: datetime) -> Record:
    """Return the record of a VM that is to be destroyed, in any phase."""
    latest = _latest_generation(record, generation)
    if record.phase is Phase.DESTROYING:
        return msgspec.structs.replace(record, generation=latest)
    return move(record, Phase.DESTROYING, now, generation=latest)


def _latest_generation(record: Record, generation: int | None) -> int:
    """Return the generation that holds after a command. Raises Refused for a command that is older than the record."""
    if generation is not None and generation < record.generation:
        raise Refused(
            f"This command is older (generation {generation}) than the last one for {record.name!r} "
            f"({record.generation}). Nothing was done.",
            code=Code.STALE,
        )
    return record.generation if generation is None else generation


def _with_owner(record: Record, owner: str) -> Record:
    """Return the record with the owner of a command. A command without one, from an older master, changes none."""
    return msgspec.structs.replace(record, owner=owner or record.owner)


def _with_new_targets(record: Record, before: Record, versions: TargetVersions) -> Record:
    """Return the record with what lies at its new targets. A disk that is to go elsewhere is not saved yet."""
    for disk_name in record.disks:
        if disk_name in record.targets and record.save_to(disk_name) != before.save_to(disk_name):
            record = with_disk(record, disk_name, **NOT_SAVED)
        if disk_name in versions:
            record = with_disk(record, disk_name, target_version=versions[disk_name])
    return record


def _require_not_migrated(record: Record) -> None:
    """Raise Refused for a VM that runs on another host: its disks here are not those that the guest writes to."""
    if record.halt_cause is HaltCause.MIGRATED and record.phase is Phase.KEPT:
        raise Refused(
            f"{record.name!r} was migrated to another host with libvirt. Its disks here are only what it left. Migrate "
            "it back with `virsh migrate`, then it goes on here; or destroy it, which discards what it left here.",
            code=Code.CONFLICT,
        )


def _require_same_spec(record: Record, spec: Spec) -> None:
    old, new = msgspec.to_builtins(record.spec), msgspec.to_builtins(spec)
    differing = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if differing:
        raise Refused(
            f"{record.name!r} is here already with another {', '.join(differing)}. "
            "Choose another name, use modify, or destroy it first."
        )


def _require_kept_disks(record: Record, spec: Spec) -> None:
    """Raise Refused for a start that would replace a kept disk, or leave it out."""
    old, new = ([getattr(each, key) or None for key in OF_KEPT_DISKS] for each in (record.spec, spec))
    if fixed := [key for key, was, value in zip(OF_KEPT_DISKS, old, new, strict=True) if was != value]:
        raise Refused(
            f"{record.name!r} would start from its kept disks, so {', '.join(fixed)} cannot be changed. "
            f"{_HOW_TO_END[record.disks_stay]}, or destroy it."
        )


_HOW_TO_END: Final = {
    False: "Call shutdown first, which saves or discards them as asked",
    True: "To save them first, name a place with modify and call shutdown",
}
