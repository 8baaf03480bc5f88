"""What becomes of the disks of a VM when it halts, and what it goes on from when it starts. Pure."""

from __future__ import annotations

from typing import Final

from master_service.planning.observed import ON, ObservedStatus, awaits_start, keeps_disks, last_reported_status
from master_service.planning.vm import VM, DesiredStatus
from worker_service.contract import KEEP, Spec

TARGETS: Final = ("hda_save_to", "hdb_save_to")


def targets(spec: Spec) -> dict[str, str | None]:
    """Return the target of each disk: a URI, "" to discard it, or None to leave it on its worker."""
    found = {"hda": spec.hda_save_to}
    return found | {"hdb": spec.hdb_save_to} if spec.hdb_image else found


def stored_target(value: str) -> str | None:
    """Return the value of a `*_save_to` as it is stored. Users write an absent one as `keep`."""
    return None if value == KEEP else value


def has_disks_to_end(vm: VM) -> bool:
    """Return whether a worker keeps disks of a VM that is off, and a shutdown would save or discard them."""
    kept = last_reported_status(vm) is ObservedStatus.HALTED and keeps_disks(vm)
    return kept and any(target is not None for target in targets(vm.desired.spec).values())


def starts_from_image(vm: VM) -> bool:
    """Return whether its user asked for a new instance from the images, and nothing was saved since."""
    saves = vm.observed.saves.values()
    return vm.desired.from_image and all(save.generation < vm.desired.status_generation for save in saves)


def describe_origin(vm: VM) -> str:
    """Return what a start of a VM goes on from, in one sentence; "" if it is on, or has only its images."""
    reported = last_reported_status(vm)
    if reported in ON or vm.desired.destroyed_at is not None:
        return ""
    if keeps_disks(vm):
        return f"It goes on from its own disks, which {vm.desired.worker} keeps."
    if not vm.observed.saves:
        return ""
    places = " and ".join(save.uri for save in vm.observed.saves.values())
    by_itself = reported is not ObservedStatus.FAILED_TO_START or awaits_start(vm)  # otherwise a user starts it
    if starts_from_image(vm) and vm.desired.status is not DesiredStatus.HALTED and by_itself:
        return f"It starts from its images. Its last save, {places}, stays as it is."
    return f"It goes on from its last save, {places}."


def origin_as_cause(vm: VM) -> str:
    """Return what a start of a VM goes on from, as a part of a sentence; "" as `describe_origin`."""
    sentence = describe_origin(vm)
    return sentence and f"{sentence[0].lower()}{sentence[1:]}".rstrip(".")
