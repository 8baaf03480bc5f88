"""The `kvm` driver: libvirt's qemu driver, with KVM if the probe passes, otherwise with emulation (TCG)."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from worker_service.contract import Capabilities, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.hypervisor import acceleration, guest_firewall, kvm_log, kvm_state
from worker_service.hypervisor.acceleration import Acceleration
from worker_service.hypervisor.base import ABSENT, Console, DomainSpec, DomainState
from worker_service.hypervisor.kvm_xml import GUEST_AGENT_PORT, SEED_TARGET, cd_element, domain_xml, seed_element
from worker_service.hypervisor.libvirt_driver import (
    HELD,
    LibvirtDriver,
    bounded,
    description,
    lookup,
    unless_it_vanishes,
)
from worker_service.hypervisor.libvirt_state import plain
from worker_service.hypervisor.qcow2_disks import Qcow2Disks
from worker_service.hypervisor.screenshot_png import png

_GUEST_AGENT_S: Final = 1
_BOOT_TIMES: Final = 10
"""How many times longer than another call a boot may take: many boots on a busy host do, and a timeout costs a try."""


class Kvm(Qcow2Disks, LibvirtDriver):
    """Domains of libvirt's qemu driver.

    Args:
        settings: the worker's; they name the connection, its time limit, libvirt's logs and the acceleration.
        qemu_user: the user for which disks and images are readable.
    """

    name = "kvm"

    def __init__(self, settings: Settings, qemu_user: User | None = None) -> None:
        Qcow2Disks.__init__(self, qemu_user)
        LibvirtDriver.__init__(self, settings.libvirt_uri, settings.libvirt_timeout_s)
        self._settings = settings

    def capabilities(self) -> Capabilities:
        """Return what it can do; KVM is tested once per boot of the host."""
        try:
            version, problem = self._version(), ""
        except HypervisorError as err:
            version, problem = "", str(err)
        acceleration, reason = self._acceleration()
        return Capabilities(problem=problem, version=version, acceleration=acceleration, reason=reason)

    def isolation(self) -> tuple[bool, str]:
        """Try whether the firewall holds QEMU's user."""
        return guest_firewall.check(self._settings)

    def _acceleration(self) -> tuple[str, str]:
        proof = self._settings.data_root / "acceleration.json"
        chosen, reason = acceleration.choose(self._settings.acceleration, lambda: acceleration.cached_proof(proof))
        return chosen.value, reason

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain. For a domain that is on, change nothing."""
        self._define_and_boot(domain_xml(spec, accelerated=self._acceleration()[0] == Acceleration.KVM), spec)

    @bounded(_BOOT_TIMES)
    def _define_and_boot(self, xml: str, spec: DomainSpec) -> None:
        connection = self._connection
        domain = lookup(connection, spec.uuid)
        if domain is not None and domain.isActive():
            return
        ids = _qemu_ids(connection)
        self._require_user(ids)
        if spec.console_socket is not None:
            _give_to_qemu(spec.console_socket.parent, ids)
        if domain is None or not domain.hasManagedSaveImage():  # that fits only the definition of its run
            domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        domain.create()

    def _require_user(self, ids: tuple[int, int] | None) -> None:
        """Raise HypervisorError if QEMU would run as a user that may not read images."""
        if ids is None or ids[0] == 0 or os.geteuid() != 0:
            return
        if self._qemu_user is None or ids[0] != self._qemu_user.uid:
            raise HypervisorError(
                f"libvirt runs QEMU as user {ids[0]}, which may not read disks and images here. "
                "Set qemu_user in the worker's settings to the `user` of qemu.conf.",
                retry=False,
            )

    @bounded()
    def state(self, uuid: str) -> DomainState:
        """Return the state of one domain; ABSENT if it does not exist."""
        connection = self._connection
        try:
            domain = connection.lookupByUUIDString(uuid)
            return kvm_state.detailed(domain, *domain.state())
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # or it vanished between two calls
                return ABSENT
            raise

    @bounded()
    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        """Return the state of every domain. A foreign one costs no call of libvirt of its own."""
        connection = self._connection
        found: dict[str, DomainState] = {}
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE):
            uuid, state, reason = domain.UUIDString(), stats["state.state"], stats["state.reason"]
            if uuid not in own:
                found[uuid] = plain(state, reason, domain.name())
                continue
            with unless_it_vanishes():
                found[uuid] = kvm_state.detailed(domain, state, reason)
        return found

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        """Return how a domain's last run ended, by libvirt's log, or None if the log has no run or no end."""
        return kvm_log.last_end(self._settings.libvirt_log_folder / f"{name}.log", uuid)

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button (virsh: shutdown)."""
        self._on(uuid, _press)

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Change the CD in the running domain and in its definition."""
        xml = ET.tostring(cd_element(path), encoding="unicode")
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG

        def change(domain: Any) -> None:
            # FORCE: the operator's change also works while the guest has locked the tray.
            with _held(domain):
                domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)

        self._on(uuid, change)

    def eject_seed(self, uuid: str) -> None:
        """Empty the drive of the seed in the running domain and in its definition."""
        xml = ET.tostring(seed_element(None), encoding="unicode")
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG

        def eject(domain: Any) -> None:
            if description(domain).find(f"./devices/disk/target[@dev='{SEED_TARGET}']") is not None:
                domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)

        self._on(uuid, eject)

    @bounded()
    def guest_agent_answers(self, uuid: str) -> bool:
        """Ping the qemu-guest-agent if the guest has opened its port."""
        connection = self._connection
        domain = lookup(connection, uuid)
        if domain is None or not domain.isActive():
            return False
        port = description(domain).find(f"./devices/channel/target[@name='{GUEST_AGENT_PORT}']")
        if port is None or port.get("state") != "connected":
            return False
        try:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', _GUEST_AGENT_S, 0)
        except libvirt.libvirtError:
            return False  # the port is open and the agent does not answer (yet): the next pass asks again
        return True

    @bounded()
    def console(self, uuid: str) -> Console | None:
        """Return the VNC socket of a running domain."""
        connection = self._connection
        domain = lookup(connection, uuid)
        if domain is None or not domain.isActive():
            return None
        listen = description(domain).find("./devices/graphics/listen[@type='socket']")
        socket = listen.get("socket") if listen is not None else None
        return Console(socket=Path(socket)) if socket else None

    @bounded()
    def screenshot(self, uuid: str) -> bytes:
        """Return the picture on the first console of a running domain, as PNG. Source: libvirt virDomainScreenshot."""
        connection = self._connection
        stream = connection.newStream()
        parts: list[bytes] = []
        try:
            connection.lookupByUUIDString(uuid).screenshot(stream, 0)
            stream.recvAll(lambda _stream, data, kept: kept.append(data), parts)
            stream.finish()
        except libvirt.libvirtError:
            with suppress(libvirt.libvirtError):
                stream.abort()
            raise
        return png(b"".join(parts))

    def memory_mib(self) -> int:
        """Return the memory of the host in MiB."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20


def _give_to_qemu(folder: Path, ids: tuple[int, int] | None) -> None:
    """Make the user that QEMU runs as the owner of a folder with mode 0700."""
    folder.mkdir(mode=0o700, exist_ok=True)
    if ids:
        os.chown(folder, *ids)


def _qemu_ids(connection: Any) -> tuple[int, int] | None:
    """Return uid and gid of QEMU, or None if libvirt runs it as its own user."""
    label = ET.fromstring(connection.getCapabilities()).findtext(".//secmodel[model='dac']/baselabel")  # noqa: S314
    if label is None:  # S314: the XML is libvirtd's own
        return None
    user, _, group = label.partition(":")
    return int(user), int(group)


def _press(domain: Any) -> None:
    if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()  # a guest that sleeps takes the button for the end of its sleep
    if domain.isActive():
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


@contextmanager
def _held(domain: Any) -> Iterator[None]:
    """Pause a running guest for the duration of the block. A guest that was held before is resumed at its end too.

    libvirt opens the tray, changes the CD and closes the tray, and a running guest could act between any two of these.
    Linux closes an open tray as soon as a program opens the drive. If it does so before the CD is in, QEMU refuses the
    rest. If it does so after that, the drive stays empty for the guest, because QEMU checks for a CD only when QEMU
    itself closes the tray.

    libvirt's `suspend` is not used: if this process died, the VM would look as if its user had suspended it.
    """
    if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "stop"}', 0)
    try:
        yield
    finally:
        if domain.state() == HELD:
            domain.resume()
