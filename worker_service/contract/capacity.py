"""The capacity of a worker, what its VMs take of it, and the capabilities of its hypervisors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from worker_service.contract.uri_secrets import masked_uri

ConsoleKind = Literal["vnc", "screenshot", ""]
"""How a VM's screen gets to its viewer. `screenshot`: as pictures, at most one a second, with keys and no pointer."""


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """What one hypervisor of a worker can do. The defaults are those of `kvm` in version 0.2."""

    problem: str = ""
    """Why it does not work now, and what to do. Empty: it works."""
    version: str = ""
    arches: tuple[str, ...] = ("x86_64", "i386")
    acceleration: str = ""
    """How guests run: `kvm`, `tcg` (emulation), `hvm`, `pvh`, `pv`, `vt-x` …"""
    reason: str = ""
    """Why they run that way."""
    networks: tuple[str, ...] = ("user", "none", "network", "bridge")
    """The kinds of the parameter `network`."""
    firmware: tuple[str, ...] = ("bios",)
    console: ConsoleKind = "vnc"
    cd: bool = True
    """Whether a VM may start with a CD."""
    cd_change: bool = True
    """Whether the CD of a running VM can be changed."""
    seed: bool = True
    """Whether a guest gets a seed, which `soft_list`, `run_agent` and cloud-init's parameters need."""
    agent_channel: str = "virtio-serial"
    """The way of the agent's report out of the guest."""
    guest_agent: bool = True
    """Whether a qemu-guest-agent in the guest can answer."""
    suspend: bool = True
    """Whether a VM can be paused in memory."""
    statistics: bool = True
    screenshot: bool = True
    console_log: bool = True
    """Whether the output of the guest's serial port is in console.log."""


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
    drivers: dict[str, Capabilities] = {}
    """Hypervisor -> its capabilities. Empty: a worker up to 0.2, which has `kvm` alone."""

    def __post_init__(self) -> None:
        """Mask secrets in URIs."""
        msgspec.structs.force_setattr(self, "images", tuple(map(masked_uri, self.images)))


def describe_taken(taken: Mapping[str, Taken]) -> str:
    """Return what takes a worker's memory and processors, in words: `on 2 (4 processors, 1024 MiB)`, or `nothing`."""
    parts = (f"{state} {each.vms} ({each.cpus} processors, {each.mem} MiB)" for state, each in taken.items())
    return ", ".join(parts) or "nothing"
