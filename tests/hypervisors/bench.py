"""The world around a hypervisor in a test: what other people, crashes and power cuts do to its guests.

All else that a test does goes through the product's own interface, so one suite fits every hypervisor.
"""

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from devstack.guests import read_counter
from tests.lib.support import Site, eventually, stop_helpers
from worker_service.contract import Capabilities
from worker_service.hypervisor.base import Hypervisor

_SMALL_MIB = 48


class Bench(ABC):
    """One hypervisor, which tests may break, and workers that use it.

    Args:
        folder: all that belongs to it lies below. Its users of disks may enter it.
    """

    name: str
    """Of the driver."""
    triple_fault = "crashed"
    """The cause of the halt after a guest's triple fault. Empty: the machine is reset, as real ones are."""

    crash_is_heard = True
    """Whether an event follows the death of the process that runs a guest. Else a look finds it."""

    unheard_end = "guest shut down"
    """The cause of the halt of a guest that powers off while the toolstack is away."""

    pause_s = 0.05
    """Seconds between two looks at a VM."""
    rest = 0.0
    """As of a `Site`: more on an emulated host, where looks take the processor from the guests."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Now, because the toolstack may have mounts of its own later.
        small = folder / "small/data"
        small.mkdir(parents=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={_SMALL_MIB}m,mode=711", "tmpfs", small], check=True)

    # Workers

    @contextmanager
    def worker(self, name: str, **settings: object) -> Iterator[Site]:
        """A worker that drives this hypervisor, removed at the end. The one named `small` has a small data root."""
        folder = self.folder / name
        folder.mkdir(mode=0o755, exist_ok=True)
        site = self._site(folder, hypervisors=[self.name], **settings)
        site.defaults = {"hypervisor": self.name, "network": "none", "mem_size": 32}
        site.pause_s, site.rest = self.pause_s, self.rest
        try:
            yield site
        finally:
            stop_helpers(site.settings, folder / "end.log")
            self._remove_domains(site)
            for each in folder.iterdir():
                if each.name != "data" or not each.is_mount():
                    shutil.rmtree(each) if each.is_dir() else each.unlink()

    @abstractmethod
    def _site(self, folder: Path, **settings: object) -> Site:
        """Make a worker with the settings that this hypervisor needs."""

    @abstractmethod
    def _remove_domains(self, site: Site) -> None:
        """Remove the domains that are left of a worker's VMs, with what the hypervisor keeps of them."""

    def driver(self, site: Site) -> Hypervisor:
        """Return the driver of a worker."""
        return site.worker.hypervisor(self.name)

    def capabilities(self, site: Site) -> Capabilities:
        """Return what the hypervisor can do, as its driver says."""
        return self.driver(site).capabilities()

    # Guests, looked at and changed without the product

    @abstractmethod
    def domains(self) -> dict[str, bool]:
        """Return the uuid of every domain, and whether it is on."""

    @abstractmethod
    def is_alive(self, uuid: str) -> bool:
        """Return whether a domain is on, without its toolstack."""

    @abstractmethod
    def power_off(self, uuid: str) -> None:
        """Pull the plug."""

    @abstractmethod
    def forget(self, uuid: str) -> None:
        """Remove the definition of a domain that is off."""

    @abstractmethod
    def crash(self, uuid: str) -> None:
        """Kill the process that runs a guest."""

    def output(self, site: Site, uuid: str) -> bytes:
        """Return what a VM's guest wrote to its serial port since the VM was made."""
        log = site.worker.store.folder(uuid) / "console.log"
        return log.read_bytes() if log.exists() else b""

    def boots(self, site: Site, uuid: str) -> int:
        """Return how often a boot-sector guest has said that its boot is counted."""
        return self.output(site, uuid).count(b"boot ")

    def until_counted(self, site: Site, uuid: str, boots: int = 1) -> None:
        """Wait until a boot-sector guest has counted so many boots since its VM was made."""
        eventually(lambda: self.boots(site, uuid) >= boots)

    def counted_on(self, site: Site, uuid: str, disk: Path) -> int:
        """Return the boots that a boot-sector guest has counted on the kept disk of its VM."""
        return read_counter(disk, disk.suffix[1:])

    def until_last_word(self, site: Site, uuid: str) -> None:
        """Wait until a boot-sector guest is about to power off."""
        eventually(lambda: b"off" in self.output(site, uuid))

    @abstractmethod
    def disc(self, uuid: str) -> Path | None:
        """Return the file in the CD drive of a domain."""

    @abstractmethod
    def foreign(self, name: str) -> AbstractContextManager[str]:
        """A domain that no worker knows, removed at the end; its uuid. It is off."""

    # The host

    @abstractmethod
    def stop_toolstack(self) -> None:
        """Kill the daemon through which the driver reaches its hypervisor."""

    @abstractmethod
    def start_toolstack(self) -> None:
        """Start what `stop_toolstack` has killed."""

    @contextmanager
    def without_toolstack(self) -> Iterator[None]:
        """Kill the toolstack, and start it again at the end."""
        self.stop_toolstack()
        try:
            yield
        finally:
            self.start_toolstack()

    def reboot_host(self, site: Site) -> None:
        """Cut the power of the host, and start it again. The worker's own processes, such as the test, stay."""
        self._cut_power()
        for record in site.worker.store.all():
            site.worker.store.update(
                record.uuid, lambda current: msgspec.structs.replace(current, host_boot="the one before")
            )
        self.start_toolstack()

    @abstractmethod
    def _cut_power(self) -> None:
        """End all guests and the toolstack at one moment."""

    @abstractmethod
    def close(self) -> None:
        """Stop all."""
