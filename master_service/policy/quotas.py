"""How much one user may have: VMs, processors, memory, disk. Pure; `store.desired` asks in the transaction of a change.

What counts: every VM of theirs that is not destroyed, running or not, since each may be started at any time. A disk
counts by its virtual size as far as that is known: of `blank:20G` from the start, of an image never: its size is known
to the worker alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Final

from worker_service.contract import Spec
from worker_service.contract.uri import blank_size


@dataclass(frozen=True, kw_only=True, slots=True)
class ResourceUsage:
    """An amount of each: used by somebody, or allowed to them. Memory and disk in MiB."""

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
"""name of an amount -> the most of it; None: as much as they like."""

NAMES: Final = {"vms": "VMs", "cpus": "processors", "mem_mib": "MiB of memory", "disk_mib": "MiB of disk"}


def usage_of(spec: Spec) -> ResourceUsage:
    """What one VM counts."""
    disks = sum((blank_size(image) or 0) >> 20 for image in (spec.hda_image, spec.hdb_image) if image)
    return ResourceUsage(vms=1, cpus=spec.cpu_count, mem_mib=spec.mem_size, disk_mib=disks)


def total(specs: Iterable[Spec]) -> ResourceUsage:
    """What all of these count."""
    return sum((usage_of(spec) for spec in specs), ResourceUsage())


def quota_violation(used: ResourceUsage, more: ResourceUsage, limits: QuotaLimits) -> str:
    """Why `more` is too much on top of `used`, with the numbers; empty when it fits. What does not grow always fits."""
    have, want = asdict(used), asdict(more)
    return "; ".join(
        f"{have[name] + want[name]} {NAMES[name]} of {most} ({have[name]} used, {want[name]} more asked for)"
        for name, most in limits.items()
        if most is not None and want[name] > 0 and have[name] + want[name] > most
    )
