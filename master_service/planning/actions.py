"""Commands in the form that workers read, and what is left to send. Pure."""

from __future__ import annotations

import msgspec

from master_service.planning.disk_ends import starts_from_image, targets
from master_service.planning.observed import ON, ObservedStatus, has_kept_disks, last_reported_status
from master_service.planning.vm import VM, Command
from worker_service.contract import (
    ACTIONS,
    KEEP,
    KEEP_FEATURE,
    MODIFIABLE,
    ORIGIN_FEATURE,
    OWNER_FEATURE,
    Action,
    Capabilities,
    Changes,
    ConsoleKind,
    ModifyAction,
    Spec,
    StartAction,
    describe_ends,
)
from worker_service.contract.uri import parse


def action_of(vm: VM, command: Command) -> Action:
    """Return the command in the worker's form."""
    owner = vm.desired.owner if _reads_owner(vm) else ""
    if command.verb == "start":
        params, origin = boot_of(vm)
        return StartAction(uuid=vm.uuid, generation=command.generation, params=params, owner=owner, origin=origin)
    if command.verb == "modify":
        # Only what differs: a worker that gets a save target looks at it again, and would accept a file that another
        # program has put there meanwhile. Without any difference the worker gets the generation alone.
        return ModifyAction(uuid=vm.uuid, generation=command.generation, params=changed_settings(vm), owner=owner)
    return ACTIONS[command.verb](uuid=vm.uuid, generation=command.generation)


def _reads_owner(vm: VM) -> bool:
    """Return whether the VM's worker reads the owner of a command. An older worker would refuse the command."""
    capacity = vm.worker.capacity if vm.worker else None
    return capacity is not None and OWNER_FEATURE in capacity.features


def capabilities_of(vm: VM) -> Capabilities | None:
    """Return what the VM's hypervisor can do on its worker, or None if that is not known: an older worker."""
    capacity = vm.worker.capacity if vm.worker else None
    return capacity.drivers.get(vm.desired.spec.hypervisor) if capacity else None


def lacks_of(vm: VM) -> list[str]:
    """Return the names of what the VM's hypervisor cannot do on its worker; none if that is not known."""
    has = capabilities_of(vm)
    found = msgspec.structs.asdict(has) if has else {}
    return [name for name, value in found.items() if value is False or (name == "console" and not value)]


def console_of(vm: VM) -> ConsoleKind:
    """Return how the screen of a VM gets to a viewer; "" for a VM that is off, or whose worker does not say."""
    if last_reported_status(vm) not in ON - {ObservedStatus.STARTING}:
        return ""
    has, reported = capabilities_of(vm), vm.observed.status
    return (reported.console if reported else "") or (has.console if has else "")


def lacks_owner(vm: VM) -> bool:
    """Return whether the worker has the VM under another owner, as it does when an older master started the VM."""
    return _reads_owner(vm) and vm.observed.status is not None and vm.observed.status.owner != vm.desired.owner


def changed_settings(vm: VM) -> Changes:
    """Return the desired settings that differ on the worker, in the words of `modify`.

    The CD changes only after the installation (contract). The result is empty when the worker has not reported a spec.
    """
    reported = vm.observed.status.spec if vm.observed.status else None
    if reported is None:
        return Changes()
    installed = last_reported_status(vm) in (ObservedStatus.RUNNING, ObservedStatus.SUSPENDED)
    absent = KEEP if _keeps(vm) else ""
    found = {}
    for name in MODIFIABLE:
        if name == "cd_image" and not installed:
            continue
        desired, observed = getattr(vm.desired.spec, name), getattr(reported, name)
        default = "" if name == "cd_image" else absent
        if (value := default if desired is None else desired) != (default if observed is None else observed):
            found[name] = value
    return Changes(**found)


def changed_names(vm: VM) -> list[str]:
    """Return the parameters that `changed_settings` has."""
    changes = changed_settings(vm)
    return [name for name in MODIFIABLE if getattr(changes, name) is not None]


def has_changed_targets(vm: VM) -> bool:
    """Return whether the worker does not know yet what becomes of the disks when the VM halts."""
    return any(name != "cd_image" for name in changed_names(vm))


def lost_on_old_worker(vm: VM) -> str:
    """Return the disks that the user wants to stay on the worker, and that its older version would discard; or ""."""
    if vm.worker is None or vm.worker.capacity is None or _keeps(vm):
        return ""
    return " and ".join(disk for disk, target in targets(vm.desired.spec).items() if target is None)


def describe_end_of(vm: VM) -> str:
    """Return what becomes of each disk of a VM when it halts on its worker, in sentences."""
    if not (disks := lost_on_old_worker(vm)):
        return describe_ends(vm.desired.spec)
    return (
        f"{vm.desired.worker} has a version of Saltern that discards {disks} when its guest shuts down. Upgrade that "
        f"worker, or say where to save the disk: saltern modify {vm.desired.name} --{disks[:3]}-save-to URI."
    )


def _keeps(vm: VM) -> bool:
    """Return whether disks without a target stay on the VM's worker. An older version discards them."""
    capacity = vm.worker.capacity if vm.worker else None
    return capacity is not None and KEEP_FEATURE in capacity.features


def origin_of(vm: VM) -> dict[str, str]:
    """Return the images that a start goes on from instead of those in its spec: its last saves, by disk."""
    return {} if starts_from_image(vm) else {disk: save.origin for disk, save in vm.observed.saves.items()}


def starts_from_file(vm: VM) -> bool:
    """Return whether a start goes on from a save that is a file on the VM's worker, which another one may not have."""
    return any(parse(image).scheme == "file" for image in origin_of(vm).values())


def boot_of(vm: VM) -> tuple[Spec, dict[str, str]]:
    """Return the parameters and the origin of a start, in the form that the VM's worker reads."""
    spec, origin = vm.desired.spec, origin_of(vm)
    kept = _spec_of_kept_disks(vm)
    if kept is not None:
        # Its worker refuses any other images. A version up to 0.2 got the save as the image, and is upgraded with that.
        spec = msgspec.structs.replace(spec, hda_image=kept.hda_image, hdb_image=kept.hdb_image)
    capacity = vm.worker.capacity if vm.worker else None
    if capacity is not None and ORIGIN_FEATURE in capacity.features:
        return spec, origin
    if kept is not None:
        return spec, {}
    # An older worker boots what it is given, and reports that as the image.
    return msgspec.structs.replace(spec, **{f"{disk}_image": image for disk, image in origin.items()}), {}


def _spec_of_kept_disks(vm: VM) -> Spec | None:
    """Return the parameters from which the disks that the VM's worker keeps were made; None if it keeps none."""
    is_there = has_kept_disks(vm) and not vm.observed.missed_polls
    return vm.observed.status.spec if is_there and vm.observed.status else None
