"""What Saltern asks of a hypervisor, in values. Nothing outside this folder knows which one it is."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Protocol

import msgspec

from worker_service.contract import HaltCause


class Power(StrEnum):
    """What a domain does."""

    RUNNING = "running"
    PAUSED = "paused"
    OFF = "off"
    ABSENT = "absent"


class DomainState(msgspec.Struct, frozen=True):
    """What the hypervisor says of one domain now."""

    power: Power
    cause: HaltCause | None = None
    """Why it is off; None where it has not run yet."""
    problem: str | None = None
    """What ails a domain that is on: paused by an I/O error, for example. A sentence for people."""
    name: str = ""
    short_of_space: bool = False
    """Stopped in the middle of a write because its disk's filesystem is full: it can run on when there is space."""
    held: bool = False
    """Paused, and not by `suspend`: as `change_cd` does for as long as it takes, or by an error within QEMU."""


ABSENT = DomainState(Power.ABSENT)


class DiskSource(msgspec.Struct, frozen=True):
    """A disk of a domain: a qcow2 overlay by absolute path."""

    disk_name: str
    """`hda` or `hdb`, the contract's words."""
    path: Path
    base: Path | None = None
    base_format: str = "qcow2"
    """Stated, never guessed: a guest can write any header it likes into a raw disk."""


class DomainSpec(msgspec.Struct, frozen=True, kw_only=True):
    """All that a domain is made of. Memory in MiB."""

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
    screen: Path | None = None
    """Unix socket for VNC; its folder is made over to the hypervisor's user. None: where the hypervisor likes."""
    seed: Path | None = None
    """An ISO image for the guest's first boot, in a drive of its own."""
    guest_agent: bool = False
    """Whether to ask for the qemu-guest-agent that the image may have."""


class Hypervisor(Protocol):
    """One driver. Every call raises HypervisorError when the hypervisor is away or refuses.

    Words: libvirt's `destroy` is `power_off` here, its `undefine` is `forget`.
    """

    name: str

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain. Called again for one that is on, it changes nothing."""

    def state(self, uuid: str) -> DomainState:
        """The state of one domain; ABSENT where there is none."""

    def states(self) -> Mapping[str, DomainState]:
        """The state of every domain by uuid, of foreign ones too."""

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        """How a domain's last run ended, by the hypervisor's log; None where that knows of no run or of no end."""

    def suspend(self, uuid: str) -> None:
        """Pause in memory. A paused domain stays paused."""

    def resume(self, uuid: str) -> None:
        """Let a paused domain run on."""

    def shutdown(self, uuid: str) -> None:
        """Press the power button; the guest may ignore it."""

    def power_off(self, uuid: str) -> None:
        """Pull the plug. A domain that is off or absent is left so."""

    def forget(self, uuid: str) -> None:
        """Remove the definition of a domain that is off or absent."""

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Put a disc in the drive of a running domain, or eject it with None. The domain is held meanwhile."""

    def eject_seed(self, uuid: str) -> None:
        """Take the seed out of a running domain; one that has none is left as it is."""

    def guest_agent_answers(self, uuid: str) -> bool:
        """Whether a qemu-guest-agent in the guest answers now."""

    def screen(self, uuid: str) -> str:
        """How to reach the screen (`unix:/path`), or an empty string."""

    def screenshot(self, uuid: str) -> bytes:
        """What the screen of a running domain shows, as PNG."""

    def memory_mib(self) -> int:
        """Memory of the host."""

    def cpus(self) -> int:
        """Logical processors of the host."""
