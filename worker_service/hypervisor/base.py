"""The interface of a hypervisor driver. Code outside this folder does not know which hypervisor it drives.

A request that a driver's capabilities exclude is refused before the driver is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from worker_service.contract import Capabilities, HaltCause
from worker_service.core.errors import BadRequest
from worker_service.images.overlay import Chain, Layer
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form


class Power(StrEnum):
    """Whether a domain runs."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    ABSENT = "absent"


class DomainState(msgspec.Struct, frozen=True):
    """The present state of one domain, by its hypervisor."""

    power: Power
    cause: HaltCause | None = None
    """Why the domain is off; None if it has not run yet."""
    problem: str | None = None
    """The problem of a domain that is on, for example a pause by an I/O error. A sentence for users."""
    name: str = ""
    short_of_space: bool = False
    """Stopped in the middle of a write because its disk's filesystem is full. It can continue once there is space."""
    held: bool = False
    """Paused by something else than `suspend`: by `change_cd` while it works, or by an error within QEMU."""
    job: str = ""
    """What the hypervisor does with the domain for somebody else, for example `migration`. Until it ends, nothing else
    may be done with the domain."""
    saved_memory: bool = False
    """Off, with its memory in a file of the hypervisor: the next boot resumes it."""
    disks: Mapping[str, tuple[Layer, ...]] = {}
    """Disk (`hda`, `hdb`) -> the files that it is on now, the one that the guest writes to first. Paths are absolute.
    Empty if the hypervisor does not know the domain, or was not asked."""

    @property
    def on(self) -> bool:
        """Whether it has a running process, which may write to its disks."""
        return self.power in (Power.RUNNING, Power.PAUSED)


ABSENT = DomainState(Power.ABSENT)


class DiskSource(msgspec.Struct, frozen=True):
    """A disk of a domain: the whole chain of its files, by absolute paths."""

    disk_name: str
    """`hda` or `hdb`, the contract's words."""
    layers: tuple[Layer, ...]
    """The file that the guest writes to first. Only this VM has them."""
    base: Path | None = None
    """The file below them, which VMs share."""
    base_format: str = "qcow2"
    """Stated and never guessed, because a guest can write any header into a raw disk."""


class NewDisk(msgspec.Struct, frozen=True, kw_only=True):
    """A disk to make: thin, on a base or blank. `size` in bytes."""

    path: Path
    """Where to make it. The caller renames it afterwards, so nothing may refer to it under this name."""
    size: int
    base: Path | None = None
    base_format: str = "qcow2"


class Console(msgspec.Struct, frozen=True, kw_only=True):
    """The way to the screen of a running domain: by VNC, or else by `screenshot` and `send_keys`."""

    socket: Path | None = None
    """The unix socket of its VNC server, which only root and the hypervisor's user reach."""


class EventSource(Protocol):
    """Tells when a domain changes. Events may be lost, and may come twice."""

    def ensure(self) -> bool:
        """Listen, if it does not yet. Return True if it has just begun: then events may have been lost."""


class DomainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that defines a domain. Memory in MiB."""

    uuid: str
    name: str
    cpu_count: int
    memory_mib: int
    arch: str
    disks: tuple[DiskSource, ...]
    cd: Path | None
    console_log: Path
    agent_log: Path
    network: str
    mac: str
    """The address of its network card."""
    console_socket: Path | None = None
    """Unix socket for VNC, in a folder that the hypervisor's user will own. None: the hypervisor chooses a path."""
    seed: Path | None = None
    """An ISO image for the guest's first boot, in a drive of its own."""
    guest_agent: bool = False
    """Whether to give the guest a port for a qemu-guest-agent, which its image may have."""


def parse_network(network: str) -> tuple[str, str]:
    """Split `user`, `none`, `network=NAME` or `bridge=NAME` into kind and name; raises BadRequest."""
    kind, _, name = network.partition("=")
    if (kind in ("user", "none") and not name) or (kind in ("network", "bridge") and name):
        return kind, name
    raise BadRequest(f"The network {network!r} is not valid. Use user, none, network=NAME or bridge=NAME.")


class Hypervisor(Protocol):
    """One driver. Every call raises HypervisorError if the hypervisor does not answer or refuses.

    libvirt's `destroy` is `power_off` here, and its `undefine` is `forget`.
    """

    name: str

    disk_format: str
    """The format of the disks that it makes, and the ending of their files."""

    def capabilities(self) -> Capabilities:
        """Return what it can do here, and why it does not work if it does not. It raises no HypervisorError."""

    def isolation(self) -> tuple[bool, str]:
        """Return whether guests on the network `user` are kept from this host, and the reason; tried at each call."""

    def make_disk(self, disk: NewDisk) -> None:
        """Make a disk. An error leaves no file. Raises BadImage, TransferFailed, HypervisorError."""

    def flatten(self, chain: Chain, target: Path, form: Form, report: Report) -> None:
        """Write a disk and everything below it into one file. An error leaves no file.

        `report` may raise to interrupt. Raises TransferFailed, BadImage, HypervisorError.
        """

    def events(self, changed: Callable[[str], None], ended_by_host: Callable[[str], None]) -> EventSource:
        """Return the source of its events. It calls back from a thread of its own, with the uuid of a domain.

        `ended_by_host` comes before `changed` if the host ended the domain, which no later query shows.
        """

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain, or resume its saved memory. For a domain that is on, change nothing."""

    def state(self, uuid: str) -> DomainState:
        """Return the state of one domain; ABSENT if it does not exist."""

    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        """Return the state of every domain by uuid, foreign ones included. `own`: those whose disks and jobs count."""

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        """Return how a domain's last run ended, by the hypervisor's log, or None if the log has no run or no end."""

    def suspend(self, uuid: str) -> None:
        """Pause in memory. A paused domain stays paused."""

    def resume(self, uuid: str) -> None:
        """Resume a paused domain, and wake one whose guest sleeps."""

    def shutdown(self, uuid: str) -> None:
        """Press the power button; the guest may ignore it. One that sleeps is woken first."""

    def power_off(self, uuid: str) -> None:
        """Power off at once. Does nothing if the domain is off or absent."""

    def forget(self, uuid: str) -> None:
        """Remove the definition of a domain that is off or absent, with its saved memory and its list of snapshots.

        Raises HypervisorError for a domain that is on.
        """

    def snapshots(self, uuid: str) -> tuple[str, ...]:
        """Return the names of the snapshots of a domain that somebody made; none if it is absent."""

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Insert a CD into the drive of a running domain, or eject it with None. The domain is held meanwhile."""

    def eject_seed(self, uuid: str) -> None:
        """Eject the seed of a running domain. Does nothing if it has none."""

    def guest_agent_answers(self, uuid: str) -> bool:
        """Return whether a qemu-guest-agent in the guest answers now."""

    def console(self, uuid: str) -> Console | None:
        """Return the way to the screen of a running domain, or None if there is none."""

    def screenshot(self, uuid: str) -> bytes:
        """Return the picture on the console of a running domain, as PNG."""

    def send_keys(self, uuid: str, scancodes: bytes) -> None:
        """Pass scancodes of set 1 to the guest of a domain whose console has the kind `screenshot`."""

    def has_network(self, name: str) -> bool:
        """Return whether the hypervisor has a network of this name."""

    def memory_mib(self) -> int:
        """Return the memory in MiB that the host has for guests and for itself."""

    def cpus(self) -> int:
        """Return the number of logical processors of the host."""
