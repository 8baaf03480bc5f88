"""The report of a Salt state about a VM: the differences between two statuses, and sentences for people."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from worker_service.contract import KEEP, DiskReport, Spec, Status, VMStatus
from worker_service.contract.uri_secrets import URI_PARAMETERS, masked_uri
from worker_service.operations.status_report import plain

Parameters = Mapping[str, Any]
Changes = dict[str, dict[str, Any]]
Difference = dict[str, tuple[Any, Any]]
"""(old value, new value) by parameter."""

_DEFAULTS: Final[Parameters] = {
    field.name: None if field.default is msgspec.NODEFAULT else field.default
    for field in msgspec.structs.fields(Spec)
    if field.name != "name"
}


def parameters_of(observed: VMStatus | None) -> dict[str, Any]:
    """Return the parameters of a VM beside its name. Defaults are left out."""
    spec = plain(observed.spec) if observed and observed.spec else {}
    return {key: value for key, value in spec.items() if key != "name"}


def difference(given: Parameters, old: Parameters) -> Difference:
    """Return the given parameters that differ from the old ones. Absent and `""` are the same.

    Not so for a `*_save_to`: absent and `KEEP` are the same, and `""` discards the disk.
    The old ones have no secrets in their URIs, and those of the given ones, which were not checked yet, do not count.
    """
    known = {**_DEFAULTS, **old}
    pairs = {
        key: (known.get(key), masked_uri(value) if key in URI_PARAMETERS and isinstance(value, str) else value)
        for key, value in given.items()
    }
    return {key: (old, new) for key, (old, new) in pairs.items() if _comparable(key, old) != _comparable(key, new)}


def _comparable(key: str, value: Any) -> Any:
    absent = KEEP if key.endswith("_save_to") else ""
    return list(value) if isinstance(value, tuple) else None if value == absent else value


def is_kept(observed: VMStatus) -> bool:
    """Return whether disks of a VM are kept on the worker."""
    return any(disk.kept for disk in observed.disks.values())


def changes_between(before: VMStatus | None, after: VMStatus | None) -> Changes:
    """Return Salt's `changes` between two statuses: `{what: {"old": …, "new": …}}`."""
    changes: Changes = {}
    old, new = (str(observed.status) if observed else "absent" for observed in (before, after))
    if old != new:
        changes["status"] = {"old": old, "new": new}
    if after is None:
        return changes
    for key, (was, value) in difference({**_DEFAULTS, **parameters_of(after)}, parameters_of(before)).items():
        changes[key] = {"old": was if before else None, "new": value}
    known = before.disks if before else {}
    for disk_name, disk in after.disks.items():
        old_disk = known.get(disk_name, DiskReport())
        if disk.saved_to and disk.saved_to != old_disk.saved_to:
            place = {key: getattr(disk, key) for key in ("saved_to", "sha256", "size")}
            changes[disk_name] = {
                "old": "on the worker",
                "new": {key: value for key, value in place.items() if value is not None},
            }
        elif _is_discarded(after, disk) and not (before and _is_discarded(before, old_disk)):
            changes[disk_name] = {"old": "on the worker", "new": "discarded"}
    return changes


def _is_discarded(observed: VMStatus, disk: DiskReport) -> bool:
    return observed.status is Status.HALTED and not (disk.kept or disk.saved_to or disk.save_to)


def comment(goal: str, name: str, before: VMStatus | None, after: VMStatus | None, *, dry_run: bool) -> str:
    """Return a sentence or two on what was done, or would be done, and where the disks are."""
    changes = changes_between(before, after)
    status = after.status if after else "absent"
    if not changes:
        text = f"{name} is {status}." if after or goal == "absent" else f"{name} is not here: nothing of it runs."
    elif "status" in changes:
        text = f"{name} would be {status}." if dry_run else f"{name} is {status} now."
    else:
        text = f"{name} would be changed: " if dry_run else f"{name} is changed: "
        text += f"{', '.join(sorted(changes))}."
    if goal == "absent" and before:
        if before.status is not Status.FAILED_TO_SAVE:
            return f"{text} Nothing is saved."
        after = before  # the one case in which a destroyed VM leaves disks
    places = (_place(disk_name, disk) for disk_name, disk in (after.disks if after else {}).items())
    return " ".join(part for part in (text, *places) if part)


def _place(disk_name: str, disk: DiskReport) -> str:
    kept = f"{disk_name} is kept in {disk.kept}." if disk.kept else ""
    if disk.saved_to:
        digest = f" (sha256 {disk.sha256})" if disk.sha256 else ""
        return f"{disk_name}: {disk.saved_to}{digest}. {kept}".rstrip()
    return kept


def describe_difference(differing: Difference) -> str:
    """Return a list of differing parameters, for people."""
    return ", ".join(f"{key} {old!r} (asked for: {new!r})" for key, (old, new) in sorted(differing.items()))


def describe_failed_start(observed: VMStatus | None) -> str:
    """Return why a VM that was started does not run."""
    if observed is None:
        return "It was started, and then destroyed by another command."
    if observed.status is Status.FAILED_TO_START:
        return observed.message
    return f"It was started and is {observed.status} again. {observed.message}".rstrip()


def start_obstacle(plan: Mapping[str, Any]) -> str:
    """Return why a start with this reply of `plan` would be refused; `""` if it would not."""
    return "" if plan["success"] and plan["fits"] else str(plan["message"])


def start_note(parameters: Parameters, before: VMStatus | None) -> str:
    """Return from what a VM starts again, as a sentence; "" for its images."""
    if before is not None and is_kept(before):
        return "It starts from its kept disks."
    saves = parameters.get("origin", {})
    return f"It starts from its last save: {', '.join(saves.values())}." if saves else ""


def to_fetch(plan: Mapping[str, Any]) -> str:
    """Return how many bytes a start would fetch, as far as the sources say."""
    unknown = any(image["size"] is None and not image["cached"] for image in plan["images"])
    return f"{'At least ' if unknown else ''}{plan['bytes_to_fetch']} bytes to fetch."
