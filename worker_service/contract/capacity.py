"""The capacity of a worker, and what its VMs take of it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from worker_service.contract.uri_secrets import masked_uri


class Taken(msgspec.Struct, frozen=True, kw_only=True):
    """What some VMs take of a worker: their number, processors, and memory in MiB."""

    vms: int = 0
    cpus: int = 0
    mem: int = 0

    def __add__(self, other: Taken) -> Taken:
        """Return the sum."""
        return Taken(vms=self.vms + other.vms, cpus=self.cpus + other.cpus, mem=self.mem + other.mem)


class Capacity(msgspec.Struct, frozen=True, kw_only=True):
    """The capacity of a worker, and the part that is not reserved for a VM. Memory in MiB, disk in bytes."""

    hypervisors: tuple[str, ...]
    arches: tuple[str, ...]
    cpu_total: int
    cpu_free: int
    mem_total: int
    mem_free: int
    disk_free: int
    images: tuple[str, ...] = ()
    """URIs of cached images. Placement prefers a worker that has the image of a VM."""
    clock: str = ""
    """The worker's own clock at the time of the report; ISO 8601, UTC."""
    guests_isolated: bool | None = None
    """Whether guests on the network `user` are kept from the worker and its private networks. None: not reported."""
    features: tuple[str, ...] = ()
    """The optional fields of commands that this worker reads. It refuses a command with another one."""
    taken: dict[str, Taken] = {}
    """What is not free, by the state of its VMs: `starting`, `on`, `ending`, `kept`. Empty: none, or not known."""
    kept_vms: int = 0
    """Number of VMs that are off and whose disks are kept on this worker, whatever ended them."""
    kept_bytes: int = 0
    """Space of their disks."""

    def __post_init__(self) -> None:
        """Mask secrets in URIs."""
        msgspec.structs.force_setattr(self, "images", tuple(map(masked_uri, self.images)))


def describe_taken(taken: Mapping[str, Taken]) -> str:
    """Return what takes a worker's memory and processors, in words: `on 2 (4 processors, 1024 MiB)`, or `nothing`."""
    parts = (f"{state} {each.vms} ({each.cpus} processors, {each.mem} MiB)" for state, each in taken.items())
    return ", ".join(parts) or "nothing"
