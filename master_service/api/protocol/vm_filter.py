"""Filters of VMs that several routes have."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Annotated

from fastapi import Query

from master_service.planning.status import SoughtStatus, sought_status
from master_service.planning.vm import VM

Labels = Annotated[
    list[str] | None, Query(max_length=32, description="`name` or `name=value`; may be repeated: all must match")
]
Statuses = Annotated[
    list[str] | None,
    Query(max_length=32, description="only these statuses, in the master's words or the workers'; may be repeated"),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class VMFilter:
    """The VMs of a reader. `vm`: a uuid or a name. Empty fields fit all VMs."""

    vm: str | None = None
    owner: str | None = None
    labels: Collection[str] = ()
    statuses: Collection[SoughtStatus] = ()

    def fits(self, vm: VM) -> bool:
        """Return whether a VM fits, whatever its status."""
        desired = vm.desired
        return (
            self.vm in (None, desired.uuid, desired.name)
            and self.owner in (None, desired.owner)
            and fits_labels(vm, self.labels)
        )

    def fits_now(self, vm: VM) -> bool:
        """Return whether a VM fits with its status."""
        return self.fits(vm) and (not self.statuses or any(sought.fits(vm) for sought in self.statuses))

    def fits_then(self, status: str, reported: str) -> bool:
        """Return whether the status of a VM right after a change fits. `reported`: by its worker, if it did."""
        return not self.statuses or any(
            sought.status == status and sought.reported in (None, reported) for sought in self.statuses
        )


async def vm_filter(
    vm: Annotated[str | None, Query(max_length=63, description="only this VM: its uuid or name")] = None,
    owner: Annotated[str | None, Query(max_length=63)] = None,
    label: Labels = None,
    status: Statuses = None,
) -> VMFilter:
    """Return the filter of a query. Raises BadRequest for an unknown status."""
    return VMFilter(vm=vm, owner=owner, labels=label or (), statuses=[sought_status(word) for word in status or ()])


def fits_labels(vm: VM, labels: Collection[str]) -> bool:
    """Return whether a VM has all these labels, each `name` or `name=value`."""
    has = vm.desired.labels
    sought = (label.partition("=") for label in labels)
    return all(name in has and (not equals or has[name] == value) for name, equals, value in sought)
