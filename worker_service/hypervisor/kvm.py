"""The `kvm` driver: libvirt's qemu driver, with KVM where it truly works, else plain emulation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import libvirt

from worker_service.contract import Code, HaltCause
from worker_service.errors import HypervisorError
from worker_service.hypervisor.base import ABSENT, DomainSpec, DomainState, Power
from worker_service.hypervisor.kvm_xml import cd_element, domain_xml

_OFF_CAUSES: Final[Mapping[int, HaltCause | None]] = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: None,  # has not run since it was defined, or since the host booted
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: HaltCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: HaltCause.KILLED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: HaltCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: None,  # it never came up: starting it failed
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: HaltCause.CRASHED,
}
_PAUSE_PROBLEMS: Final[Mapping[int, str]] = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "The guest is stopped by an I/O error on its disk, mostly a full data root. "
    "Free space, then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "The guest was stopped by its watchdog. Look at its console, then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "The guest has crashed and is held. Look at its console, then destroy it.",
}
# Between two states: QEMU is still there and nothing is to be done yet.
_PASSING: Final = frozenset({libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})

# Errors reach the caller as exceptions; libvirt would print each one on stderr too.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


class Kvm:
    """Domains of one libvirt connection; made anew when it is lost.

    Args:
        uri: libvirt connection URI, for example `qemu:///system`.
        accelerated: tells whether KVM works here; asked only when a domain is defined.
    """

    name = "kvm"

    def __init__(self, uri: str, accelerated: Callable[[], bool]) -> None:
        self._uri = uri
        self._accelerated = accelerated
        self._connection: Any = None

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain; one that is on is left as it is."""
        xml = domain_xml(spec, accelerated=self._accelerated())
        with self._libvirt() as connection:
            domain = _lookup(connection, spec.uuid)
            if domain is not None and domain.isActive():
                return
            domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
            domain.create()

    def state(self, uuid: str) -> DomainState:
        """The state of one domain; ABSENT where there is none."""
        with self._libvirt() as connection:
            try:
                domain = connection.lookupByUUIDString(uuid)
                state, reason = domain.state()
            except libvirt.libvirtError as err:
                if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # or it went between the two questions
                    return ABSENT
                raise
            return _state(state, reason, domain.name())

    def states(self) -> Mapping[str, DomainState]:
        """The state of every domain, in one call of libvirt."""
        with self._libvirt() as connection:
            return {
                domain.UUIDString(): _state(stats["state.state"], stats["state.reason"], domain.name())
                for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
            }

    def suspend(self, uuid: str) -> None:
        """Pause in memory (virsh: suspend)."""
        self._on(uuid, lambda domain: domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED and domain.suspend())

    def resume(self, uuid: str) -> None:
        """Let a paused domain run on (virsh: resume)."""
        self._on(uuid, lambda domain: domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED and domain.resume())

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button (virsh: shutdown)."""
        self._on(
            uuid, lambda domain: domain.isActive() and domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        )

    def power_off(self, uuid: str) -> None:
        """Pull the plug (virsh: destroy)."""
        with self._libvirt() as connection:
            domain = _lookup(connection, uuid)
            if domain is not None and domain.isActive():
                domain.destroy()

    def forget(self, uuid: str) -> None:
        """Remove the definition (virsh: undefine)."""
        with self._libvirt() as connection:
            domain = _lookup(connection, uuid)
            if domain is not None:
                domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Change the disc in the running domain and in its definition."""
        xml = ET.tostring(cd_element(path), encoding="unicode")
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG
        # FORCE: a guest that has locked the tray does not decide what its operator does.
        self._on(uuid, lambda domain: domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE))

    def screen(self, uuid: str) -> str:
        """The VNC socket of a running domain as `unix:/path`; empty where it has none."""
        with self._libvirt() as connection:
            domain = _lookup(connection, uuid)
            if domain is None or not domain.isActive():
                return ""
            listen = ET.fromstring(domain.XMLDesc()).find("./devices/graphics/listen[@type='socket']")  # noqa: S314
        # S314: the XML is libvirtd's own.
        return f"unix:{listen.get('socket')}" if listen is not None and listen.get("socket") else ""

    def memory_mib(self) -> int:
        """Memory of the host."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20

    def cpus(self) -> int:
        """Processors of the host."""
        return os.cpu_count() or 1

    def connect(self) -> Any:
        """The libvirt connection, for the watcher's event registration; raises HypervisorError."""
        with self._libvirt() as connection:
            return connection

    def _on(self, uuid: str, act: Callable[[Any], object]) -> None:
        with self._libvirt() as connection:
            domain = _lookup(connection, uuid)
            if domain is None:
                raise HypervisorError(f"libvirt at {self._uri} has no domain {uuid}. `status` shows what became of it.")
            act(domain)

    @contextmanager
    def _libvirt(self) -> Iterator[Any]:
        try:
            if self._connection is None or not self._connection.isAlive():
                self._connection = libvirt.open(self._uri)
            yield self._connection
        except libvirt.libvirtError as err:
            raise _translated(err, self._uri) from err


def _lookup(connection: Any, uuid: str) -> Any | None:
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _state(state: int, reason: int, name: str) -> DomainState:
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return DomainState(Power.OFF, cause=_OFF_CAUSES.get(reason, HaltCause.UNKNOWN), name=name)
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return DomainState(Power.OFF, cause=HaltCause.CRASHED, name=name)
    if state == libvirt.VIR_DOMAIN_PAUSED and reason not in _PASSING:
        return DomainState(Power.PAUSED, problem=_PAUSE_PROBLEMS.get(reason), name=name)
    return DomainState(Power.RUNNING, name=name)


def _translated(err: Any, uri: str) -> HypervisorError:
    code, text = err.get_error_code(), err.get_error_message()
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return HypervisorError(
            f"libvirt refused: {text}. `status` shows the VM's present state.", code=Code.CONFLICT, retry=False
        )
    if err.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE) or code == libvirt.VIR_ERR_NO_CONNECT:
        return HypervisorError(
            f"libvirt does not answer at {uri}: {text}. Start libvirtd and virtlogd; VMs that run go on running."
        )
    return HypervisorError(f"libvirt at {uri} failed: {text}. The VM's helper.log and libvirtd's log say more.")
