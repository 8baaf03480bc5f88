"""Commands in the form that workers read, and what is left to send. Pure."""

from __future__ import annotations

from master_service.planning.observed import ObservedStatus, last_reported_status
from master_service.planning.vm import VM, Command
from worker_service.contract import (
    ACTIONS,
    MODIFIABLE,
    OWNER_FEATURE,
    Action,
    Changes,
    ModifyAction,
    StartAction,
)


def action_of(vm: VM, command: Command) -> Action:
    """Return the command in the worker's form."""
    owner = vm.desired.owner if _reads_owner(vm) else ""
    if command.verb == "start":
        return StartAction(uuid=vm.uuid, generation=command.generation, params=vm.desired.spec, owner=owner)
    if command.verb == "modify":
        # Only what differs: a worker that gets a save target looks at it again, and would accept a file that another
        # program has put there meanwhile. Without any difference the worker gets the generation alone.
        return ModifyAction(uuid=vm.uuid, generation=command.generation, params=changed_settings(vm), owner=owner)
    return ACTIONS[command.verb](uuid=vm.uuid, generation=command.generation)


def _reads_owner(vm: VM) -> bool:
    """Return whether the VM's worker reads the owner of a command. An older worker would refuse the command."""
    capacity = vm.worker.capacity if vm.worker else None
    return capacity is not None and OWNER_FEATURE in capacity.features


def lacks_owner(vm: VM) -> bool:
    """Return whether the worker has the VM under another owner, as it does when an older master started the VM."""
    return _reads_owner(vm) and vm.observed.status is not None and vm.observed.status.owner != vm.desired.owner


def changed_settings(vm: VM) -> Changes:
    """Return the desired settings that differ on the worker; `""` discards a disk, or ejects the CD.

    The CD changes only after the installation (contract). The result is empty when the worker has not reported a spec.
    """
    reported = vm.observed.status.spec if vm.observed.status else None
    if reported is None:
        return Changes()
    installed = last_reported_status(vm) in (ObservedStatus.RUNNING, ObservedStatus.SUSPENDED)
    names = [name for name in MODIFIABLE if installed or name != "cd_image"]
    pairs = {name: (getattr(vm.desired.spec, name) or "", getattr(reported, name) or "") for name in names}
    return Changes(**{name: desired for name, (desired, observed) in pairs.items() if desired != observed})
