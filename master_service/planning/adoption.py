"""Adopt a VM that runs on a worker without being assigned to it: as it is, with an owner. Pure."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from typing import Final

from master_service.core.errors import Conflict
from master_service.planning.observed import ObservedStatus, last_reported_status
from master_service.planning.vm import VM, DesiredState, DesiredStatus, DispatchState, ObservedState, Worker
from worker_service.contract import Spec, VMStatus, is_like_uuid
from worker_service.contract.uri_secrets import MASK, URI_PARAMETERS
from worker_service.contract.words import refusal_of_name

_UP: Final = frozenset({ObservedStatus.STARTING, ObservedStatus.INSTALLING, ObservedStatus.RUNNING})


def adopt(found: VMStatus, worker: Worker, owner: str, owner_id: str, now: datetime) -> VM:
    """Return an unassigned VM as a VM of this owner, in the state in which its worker reports it.

    Its generation is the reported one, so it counts as delivered: the master has nothing to change about the VM, and
    starts and stops nothing. The planner then sends the owner with the next generation. Raises Conflict.
    """
    spec = _known_spec(found, worker.id)
    if is_like_uuid(found.name) or refusal_of_name(found.name):
        raise Conflict(
            f"No VM of this master may be named {found.name!r}: paths and Salt would take the name for something else.",
            _leave(worker.id),
        )
    observed = ObservedState().reported(found, now)
    desired = DesiredState(
        uuid=found.uuid,
        name=found.name,
        owner=owner,
        owner_id=owner_id,
        spec=spec,
        status=DesiredStatus.HALTED,
        generation=found.generation,
        user_generation=found.generation,
        version=1,
        created_at=now,
        changed_at=now,
        worker=worker.id,
    )
    vm = VM(desired=desired, observed=observed, dispatch=DispatchState(), worker=worker)
    return replace(vm, desired=replace(desired, status=_as_it_is(vm)))


def _known_spec(found: VMStatus, worker: str) -> Spec:
    """Return the parameters of a VM. Raises Conflict if the worker does not report them as they are."""
    if found.spec is None:
        raise Conflict(f"{worker} does not report the parameters of {found.name}.", f"Upgrade Saltern on {worker}.")
    if secret := [name for name in URI_PARAMETERS if MASK in (getattr(found.spec, name) or "")]:
        raise Conflict(
            f"The parameters of {found.name} have a secret ({', '.join(secret)}), which {worker} reports only as "
            f"{MASK}: the master could neither start the VM again nor save its disks.",
            f"Give {worker} the credentials of the store (images.stores), and start the VM there again with a URI "
            "without a secret. " + _leave(worker),
        )
    return found.spec


def _leave(worker: str) -> str:
    return f"It stays on {worker} as it is; `salt {worker} vmachines.…` still commands it."


def _as_it_is(vm: VM) -> DesiredStatus:
    """Return the desired status for which there is nothing to do. A VM that is off stays off, with kept disks too."""
    reported = last_reported_status(vm)
    if reported is ObservedStatus.SUSPENDED:
        return DesiredStatus.PAUSED
    return DesiredStatus.RUNNING if reported in _UP else DesiredStatus.HALTED
