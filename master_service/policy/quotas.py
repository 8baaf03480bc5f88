"""The quota of one user: VMs, processors, memory, disk. Pure; `store.desired` checks it in each transaction.

Every VM of the user counts until it is destroyed, whether it runs or not, because it may start at any time. Of a VM
that has failed to start, only the VM itself counts; the rest counts again when its user starts it again. A disk counts
by its virtual size, which is known for `blank:20G`. Only the worker knows the size of an image, so it does not count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final, Literal

from master_service.planning.status import has_failed_to_start
from master_service.planning.vm import VM
from worker_service.contract import Spec
from worker_service.contract.uri import blank_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceUsage:
    """An amount of each resource. Memory and disk in MiB."""

    vms: int = 0
    cpus: int = 0
    mem_mib: int = 0
    disk_mib: int = 0

    def __add__(self, other: ResourceUsage) -> ResourceUsage:
        return ResourceUsage(
            vms=self.vms + other.vms,
            cpus=self.cpus + other.cpus,
            mem_mib=self.mem_mib + other.mem_mib,
            disk_mib=self.disk_mib + other.disk_mib,
        )

    def __sub__(self, other: ResourceUsage) -> ResourceUsage:
        return self + ResourceUsage(vms=-other.vms, cpus=-other.cpus, mem_mib=-other.mem_mib, disk_mib=-other.disk_mib)


QuotaLimits = Mapping[str, int | None]
"""resource -> limit; None is unlimited."""

LimitChanges = Mapping[str, int | Literal["usual"] | None]
"""resource -> its new limit. `usual` is the one of the settings; the other resources keep theirs."""

NAMES: Final = {"vms": "VMs", "cpus": "processors", "mem_mib": "MiB of memory", "disk_mib": "MiB of disk"}


def usage_of(vm: VM) -> ResourceUsage:
    """Return the usage of one VM."""
    return ResourceUsage(vms=1) if has_failed_to_start(vm) else usage_of_spec(vm.desired.spec)


def usage_of_spec(spec: Spec) -> ResourceUsage:
    """Return the usage of a VM with this spec that may start."""
    disks = sum((blank_size(image) or 0) >> 20 for image in (spec.hda_image, spec.hdb_image) if image)
    return ResourceUsage(vms=1, cpus=spec.cpu_count, mem_mib=spec.mem_size, disk_mib=disks)


def total(vms: Iterable[VM]) -> ResourceUsage:
    """Return the usage of all these VMs."""
    return sum((usage_of(vm) for vm in vms), ResourceUsage())


def grows(more: ResourceUsage) -> bool:
    """Return whether any amount is more than before."""
    return any(amount > 0 for amount in asdict(more).values())


def change_limits(limits: QuotaLimits, changes: LimitChanges) -> dict[str, int | None]:
    """Return an account's own limits after a change."""
    kept = {name: most for name, most in limits.items() if name not in changes}
    return kept | {name: most for name, most in changes.items() if most != "usual"}


def quota_violation(used: ResourceUsage, more: ResourceUsage, limits: QuotaLimits) -> str:
    """Return why `more` on top of `used` exceeds the limits, with numbers; empty when it fits or does not grow."""
    have, extra = asdict(used), asdict(more)
    return "; ".join(
        f"{have[name] + extra[name]} {NAMES[name]} of {most} ({have[name]} used, {extra[name]} more requested)"
        for name, most in limits.items()
        if most is not None and extra[name] > 0 and have[name] + extra[name] > most
    )
