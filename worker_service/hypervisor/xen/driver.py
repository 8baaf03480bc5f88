"""The `xen` driver: libvirt's libxl driver. The worker runs in dom0."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import libvirt
import msgspec

from worker_service.contract import Capabilities, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import ABSENT, Console, DomainSpec, DomainState
from worker_service.hypervisor.libvirt_driver import LibvirtDriver, bounded, description, lookup, unless_it_vanishes
from worker_service.hypervisor.qcow2_disks import Qcow2Disks
from worker_service.hypervisor.xen import empty_cd, kinds, messages, state
from worker_service.hypervisor.xen.xml import (
    GRUB,
    NAMESPACE,
    SEED_TARGET,
    Guest,
    cd_element,
    domain_xml,
    screen_in,
    seed_element,
)

_BOOT_TIMES: Final = 10
"""How many times longer than another call a boot may take."""
_FIRST_S: Final = 9.0
"""Seconds in which a guest without firmware shows that it can run here: libxl reports such a start too early."""
_LOOK_S: Final = 0.25
_SCREENS: Final = Path("/run/saltern-xen")
"""Folder of the screens' sockets whose path in the VM's folder would be too long."""
_XENSTORE_S: Final = 10.0
_LIVE: Final = libvirt.VIR_DOMAIN_AFFECT_LIVE
_CONFIG: Final = libvirt.VIR_DOMAIN_AFFECT_CONFIG


class Xen(Qcow2Disks, LibvirtDriver):
    """Domains of libvirt's libxl driver. Domain-0 is none of them.

    Args:
        settings: the worker's; they name the connection, its time limit, and the kind of guests.
        qemu_user: the user that qemu-img runs as.
    """

    name = "xen"

    def __init__(self, settings: Settings, qemu_user: User | None = None) -> None:
        Qcow2Disks.__init__(self, qemu_user)
        LibvirtDriver.__init__(self, settings.xen_uri, settings.libvirt_timeout_s)
        self._settings = settings
        self._kinds: Mapping[Guest, tuple[str, ...]] | None = None

    def capabilities(self) -> Capabilities:
        """Return what it can do with the kind of guests that it makes here."""
        try:
            version = self._version()
            guest, arches, reason = self._guest()
            problem = self._versions_problem() or self._grub_problem(guest)
        except HypervisorError as err:
            return msgspec.structs.replace(kinds.OFFERS["hvm"], problem=str(err))
        return msgspec.structs.replace(
            kinds.OFFERS[guest], problem=problem, version=version, arches=arches, acceleration=guest, reason=reason
        )

    def isolation(self) -> tuple[bool, str]:
        """Say that there is no network `user`, whose guests would have to be kept from the host."""
        return True, "Guests of Xen get no network `user`."

    @bounded()
    def _read_kinds(self) -> Mapping[Guest, tuple[str, ...]]:
        return kinds.kinds_in(self._connection.getCapabilities())

    @bounded()
    def _versions_problem(self) -> str:
        return messages.of_versions(self._connection.getVersion(), self._connection.getLibVersion())

    def _grub_problem(self, guest: Guest) -> str:
        return "" if guest == "hvm" else messages.of_grub(self._settings.xen_grub_folder / GRUB[guest])

    def _guest(self) -> tuple[Guest, tuple[str, ...], str]:
        if self._kinds is None:  # it does not change until the host boots again
            self._kinds = self._read_kinds()
        return kinds.chosen(self._settings.xen_guest, self._kinds)

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain. Return when an HVM guest begins, and when another has survived its start."""
        guest, _arches, _reason = self._guest()
        if problem := self._grub_problem(guest):
            raise HypervisorError(problem, retry=False)
        screen = spec.console_socket or _SCREENS / spec.uuid / "vnc"
        disc = empty_cd.provided(self._settings.data_root)
        grub = self._settings.xen_grub_folder
        xml = domain_xml(spec, guest, empty_cd=disc, grub=grub, screen=screen)
        if self._define_and_boot(xml, spec, screen.parent) and guest != "hvm":
            self._survive(spec)

    @bounded(_BOOT_TIMES)
    def _define_and_boot(self, xml: str, spec: DomainSpec, screen_folder: Path) -> bool:
        """Return False if the domain is on already."""
        connection = self._connection
        domain = lookup(connection, spec.uuid)
        if domain is not None and domain.isActive():
            if not state.qemu_is_dead(domain.ID()):
                return False
            domain.destroy()
        free_mib = int(connection.getFreeMemory() >> 20)
        if spec.memory_mib > free_mib:  # libvirt might take it from dom0
            raise HypervisorError(messages.too_little_memory(spec.name, spec.memory_mib, free_mib))
        screen_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if domain is None or not domain.hasManagedSaveImage():  # that fits only the definition of its run
            domain = connection.defineXMLFlags(xml, 0)  # without a check that costs 0.1 to 0.4 s in dom0
        try:
            domain.create()
        except libvirt.libvirtError as err:
            if err.get_error_code() not in (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_ERR_OPERATION_FAILED):
                raise
            raise HypervisorError(messages.failed_create(spec.name, err.get_error_message())) from err
        return True

    def _survive(self, spec: DomainSpec) -> None:
        """Wait until a guest without firmware has run for some seconds. Raises HypervisorError if it crashes."""
        began = time.monotonic()
        while (passed := time.monotonic() - began) < _FIRST_S:
            observed = self.state(spec.uuid)
            if not observed.on:
                if observed.cause is not HaltCause.CRASHED:
                    return
                self.forget(spec.uuid)  # so that it counts as one that has not started
                raise HypervisorError(messages.died(spec.name, passed, messages.console_end(spec.name)), retry=False)
            time.sleep(_LOOK_S)

    @bounded()
    def state(self, uuid: str) -> DomainState:
        """Return the state of one domain; ABSENT if it does not exist."""
        connection = self._connection
        try:
            return state.detailed(connection.lookupByUUIDString(uuid), state.qemu_is_dead)
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # or it vanished between two calls
                return ABSENT
            raise

    @bounded()
    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        """Return the state of every domain but Domain-0. libxl has no call for all of them at once."""
        found: dict[str, DomainState] = {}
        for domain in self._guests():
            uuid = domain.UUIDString()
            with unless_it_vanishes():
                known = uuid in own
                found[uuid] = state.detailed(domain, state.qemu_is_dead) if known else state.of_foreign(domain)
        return found

    def _guests(self) -> list[Any]:
        return [domain for domain in self._connection.listAllDomains() if domain.ID() != state.DOMAIN_0]

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:  # noqa: ARG002 - the interface
        """Return None: neither libvirt nor Xen writes down how a domain ended."""
        return None

    @bounded()
    def power_off(self, uuid: str) -> None:
        """Power off at once (virsh: destroy)."""
        domain = lookup(self._connection, uuid)
        if domain is not None and domain.isActive():
            domain.destroy()

    @bounded()
    def forget(self, uuid: str) -> None:
        """Remove the definition (virsh: undefine), and what Xen keeps of a guest whose QEMU has died."""
        domain = lookup(self._connection, uuid)
        if domain is None:
            return
        if domain.isActive():  # libvirt would let it run without a definition
            if not state.qemu_is_dead(domain.ID()):
                raise HypervisorError(f"The domain {domain.name()!r} runs. It keeps its definition until it is off.")
            domain.destroy()
        domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE)

    def snapshots(self, uuid: str) -> tuple[str, ...]:  # noqa: ARG002 - the interface
        """Return none: libvirt makes none of a Xen domain."""
        return ()

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button; write the request to the guest's control node if it has no ACPI."""
        if self._guest()[0] == "hvm":
            self._on(uuid, _press)
        else:
            self._on(uuid, _request_poweroff)

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Change the CD in the running domain and in its definition, where a disc of ours stands for none."""
        live = ET.tostring(cd_element(path), encoding="unicode")
        later = ET.tostring(cd_element(path or empty_cd.provided(self._settings.data_root)), encoding="unicode")

        def change(domain: Any) -> None:
            try:
                domain.updateDeviceFlags(live, _LIVE)
            except libvirt.libvirtError:  # the guest has closed the tray in between: it is closed now
                domain.updateDeviceFlags(live, _LIVE)
            domain.updateDeviceFlags(later, _CONFIG)

        self._on(uuid, change)

    def eject_seed(self, uuid: str) -> None:
        """Detach the disk of the seed from the running domain and from its definition."""

        def eject(domain: Any) -> None:
            disk = description(domain).find(f"./devices/disk/target[@dev='{SEED_TARGET}']/../source")
            if disk is not None:
                xml = ET.tostring(seed_element(Path(disk.get("file", ""))), encoding="unicode")
                domain.detachDeviceFlags(xml, _LIVE | _CONFIG)

        self._on(uuid, eject)

    def guest_agent_answers(self, uuid: str) -> bool:  # noqa: ARG002 - the interface
        """Return False: the guest gets no port for a qemu-guest-agent."""
        return False

    @bounded()
    def console(self, uuid: str) -> Console | None:
        """Return the VNC socket of a running HVM guest."""
        domain = lookup(self._connection, uuid)
        if domain is None or not domain.isActive():
            return None
        socket = screen_in(description(domain))
        return Console(socket=socket) if socket else None

    def screenshot(self, uuid: str) -> bytes:
        """Raise HypervisorError: libxl has no screenshots."""
        raise HypervisorError(f"Xen takes no screenshots (domain {uuid}). Open the screen instead.", retry=False)

    @bounded()
    def memory_mib(self) -> int:
        """Return the memory of our guests and Xen's free memory in MiB. dom0 and foreign domains keep theirs."""
        used_kib = sum(domain.maxMemory() for domain in self._guests() if domain.isActive() and _is_ours(domain))
        return int(used_kib >> 10) + int(self._connection.getFreeMemory() >> 20)

    @bounded()
    def cpus(self) -> int:
        """Return the number of logical processors of the host, of which dom0 may have only some."""
        return int(self._connection.getInfo()[2])

    def _explained(self, err: Any) -> HypervisorError:
        advice = messages.of_libvirt(err.get_error_message())
        return HypervisorError(advice) if advice else super()._explained(err)


def _is_ours(domain: Any) -> bool:
    with suppress(libvirt.libvirtError):  # it has no such metadata
        return bool(domain.metadata(libvirt.VIR_DOMAIN_METADATA_ELEMENT, NAMESPACE))
    return False


def _press(domain: Any) -> None:
    if domain.isActive():
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


def _request_poweroff(domain: Any) -> None:
    """Ask a guest without ACPI to power off. libvirt's own call would hold the domain for a minute if it ignores that.

    Source: xen/include/public/io/xs_wire.h, the node `control/shutdown`.
    """
    if not domain.isActive():
        return
    command = ["xenstore-write", f"/local/domain/{domain.ID()}/control/shutdown", "poweroff"]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=_XENSTORE_S)
    except FileNotFoundError:
        raise HypervisorError("xenstore-write is missing. Install xenstore-utils.", retry=False) from None
    except subprocess.CalledProcessError as err:
        raise HypervisorError(f"xenstore-write failed: {err.stderr.strip() or err.returncode}.") from err
    except subprocess.TimeoutExpired:
        raise HypervisorError(f"xenstored has not answered for {_XENSTORE_S:g} s.") from None
