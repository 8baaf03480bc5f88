"""The `kvm` driver: libvirt's qemu driver, with KVM where it truly works, else plain emulation."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu
import msgspec

from worker_service.contract import Code, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor import kvm_log
from worker_service.hypervisor.base import ABSENT, DomainSpec, DomainState, Power
from worker_service.hypervisor.call_timeout import CallTimeout, SharedCall, call_with_timeout
from worker_service.hypervisor.kvm_xml import GUEST_AGENT_PORT, SEED_TARGET, cd_element, domain_xml, seed_element
from worker_service.hypervisor.screenshot_png import png

_OFF_CAUSES: Final[Mapping[int, HaltCause | None]] = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: None,  # has not run since it was defined, or since the host booted
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: HaltCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: HaltCause.KILLED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: HaltCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: None,  # it never came up: starting it failed
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: HaltCause.CRASHED,
}
_PAUSE_PROBLEMS: Final[Mapping[int, str]] = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "The guest is stopped by an I/O error on its disk. Check the data root's disk, "
    "then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "The guest was stopped by its watchdog. Look at its console, then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "The guest has crashed and is held. Look at its console, then destroy it.",
}
_NO_SPACE: Final = (
    "The guest is stopped in the middle of a write: the data root is full. Free space there, and it runs on by itself."
)
_GUEST_AGENT_S: Final = 1
_BOOT_TIMES: Final = 10
"""A boot may take that many times as long as an answer: many at once on a busy host do, and a failure is a try."""
# How libvirt tells a pause that it was not asked for itself, and that nothing went wrong for.
_HELD: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN]
# Between two states: QEMU is still there and nothing is to be done yet.
_PASSING: Final = frozenset({libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})

# Errors reach the caller as exceptions; libvirt would print each one on stderr too.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


P = ParamSpec("P")
T = TypeVar("T")


def _bounded(times: float = 1) -> Callable[[Callable[Concatenate[Kvm, P], T]], Callable[Concatenate[Kvm, P], T]]:
    """Ask libvirt within its time: first whether it answers at all, which all callers ask together, then this."""

    def decorate(method: Callable[Concatenate[Kvm, P], T]) -> Callable[Concatenate[Kvm, P], T]:
        @wraps(method)
        def call(self: Kvm, /, *arguments: P.args, **keywords: P.kwargs) -> T:
            limit_s = self._limit_s
            try:
                self._reached.result()
                limit_s *= times
                return call_with_timeout(limit_s, lambda: method(self, *arguments, **keywords))
            except CallTimeout:
                raise HypervisorError(
                    f"libvirt at {self._uri} has not answered for {limit_s:g} s: it, or the VM's QEMU, is stopped or "
                    "hangs. What was asked of it may still happen. Look at libvirtd (systemctl status libvirtd), "
                    "restart it if need be; VMs that run go on running."
                ) from None
            except libvirt.libvirtError as err:
                raise _translated(err, self._uri) from err

        return call

    return decorate


class Kvm:
    """Domains of one libvirt connection; made anew when it is lost.

    Args:
        uri: libvirt connection URI, for example `qemu:///system`.
        accelerated: tells whether KVM works here; asked only when a domain is defined.
        logs: libvirt's folder of domain logs.
        limit_s: how long libvirt may take for an answer.
    """

    name = "kvm"

    def __init__(
        self,
        uri: str,
        accelerated: Callable[[], bool],
        logs: Path = Path("/var/log/libvirt/qemu"),
        limit_s: float = 60.0,
    ) -> None:
        self._uri = uri
        self._logs = logs
        self._accelerated = accelerated
        self._limit_s = limit_s
        self._connection: Any = None
        self._reached = SharedCall(limit_s, self._reach)

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain; one that is on is left as it is."""
        self._define_and_boot(domain_xml(spec, accelerated=self._accelerated()), spec)

    @_bounded(_BOOT_TIMES)
    def _define_and_boot(self, xml: str, spec: DomainSpec) -> None:
        connection = self._connection
        domain = _lookup(connection, spec.uuid)
        if domain is not None and domain.isActive():
            return
        if spec.screen is not None:
            _make_over(spec.screen.parent, connection)
        domain = connection.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE)
        domain.create()

    @_bounded()
    def state(self, uuid: str) -> DomainState:
        """The state of one domain; ABSENT where there is none."""
        connection = self._connection
        try:
            domain = connection.lookupByUUIDString(uuid)
            state, reason = domain.state()
        except libvirt.libvirtError as err:
            if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:  # or it went between the two questions
                return ABSENT
            raise
        return _with_disk_errors(_state(state, reason, domain.name()), reason, domain)

    @_bounded()
    def states(self) -> Mapping[str, DomainState]:
        """The state of every domain, in one call of libvirt."""
        connection = self._connection
        return {
            domain.UUIDString(): _with_disk_errors(
                _state(stats["state.state"], stats["state.reason"], domain.name()), stats["state.reason"], domain
            )
            for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE)
        }

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        """How a domain's last run ended, by libvirt's log of it; None where that knows of no run or of no end."""
        return kvm_log.last_end(self._logs / f"{name}.log", uuid)

    def suspend(self, uuid: str) -> None:
        """Pause in memory (virsh: suspend)."""
        self._on(uuid, _suspend)

    def resume(self, uuid: str) -> None:
        """Let a paused domain run on (virsh: resume)."""
        self._on(uuid, lambda domain: domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED and domain.resume())

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button (virsh: shutdown)."""
        self._on(
            uuid, lambda domain: domain.isActive() and domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)
        )

    @_bounded()
    def power_off(self, uuid: str) -> None:
        """Pull the plug (virsh: destroy)."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is not None and domain.isActive():
            domain.destroy()

    @_bounded()
    def forget(self, uuid: str) -> None:
        """Remove the definition (virsh: undefine)."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is not None:
            domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM)

    def change_cd(self, uuid: str, path: Path | None) -> None:
        """Change the disc in the running domain and in its definition."""
        xml = ET.tostring(cd_element(path), encoding="unicode")
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG

        def change(domain: Any) -> None:
            # FORCE: a guest that has locked the tray does not decide what its operator does.
            with _held(domain):
                domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)

        self._on(uuid, change)

    def eject_seed(self, uuid: str) -> None:
        """Empty the seed's drive in the running domain and in its definition."""
        xml = ET.tostring(seed_element(None), encoding="unicode")
        flags = libvirt.VIR_DOMAIN_AFFECT_LIVE | libvirt.VIR_DOMAIN_AFFECT_CONFIG

        def eject(domain: Any) -> None:
            if _description(domain).find(f"./devices/disk/target[@dev='{SEED_TARGET}']") is not None:
                domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)

        self._on(uuid, eject)

    @_bounded()
    def guest_agent_answers(self, uuid: str) -> bool:
        """Ping the qemu-guest-agent, where the guest has opened its port."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None or not domain.isActive():
            return False
        port = _description(domain).find(f"./devices/channel/target[@name='{GUEST_AGENT_PORT}']")
        if port is None or port.get("state") != "connected":
            return False
        try:
            libvirt_qemu.qemuAgentCommand(domain, '{"execute": "guest-ping"}', _GUEST_AGENT_S, 0)
        except libvirt.libvirtError:
            return False  # it opened its port and does not speak (yet): the next look asks again
        return True

    @_bounded()
    def screen(self, uuid: str) -> str:
        """The VNC socket of a running domain as `unix:/path`; empty where it has none."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None or not domain.isActive():
            return ""
        listen = _description(domain).find("./devices/graphics/listen[@type='socket']")
        return f"unix:{listen.get('socket')}" if listen is not None and listen.get("socket") else ""

    @_bounded()
    def screenshot(self, uuid: str) -> bytes:
        """What the first screen of a running domain shows, as PNG. Source: libvirt virDomainScreenshot."""
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
        """Memory of the host."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20

    def cpus(self) -> int:
        """Processors of the host."""
        return os.cpu_count() or 1

    @_bounded()
    def connect(self) -> Any:
        """The libvirt connection, for the watcher's event registration; raises HypervisorError."""
        return self._connection

    @_bounded()
    def _on(self, uuid: str, act: Callable[[Any], object]) -> None:
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None:
            raise HypervisorError(f"libvirt at {self._uri} has no domain {uuid}. `status` shows what became of it.")
        act(domain)

    def _reach(self) -> None:
        """Demand a living connection: the one there is, or a new one."""
        if not _alive(self._connection):
            self._connection = libvirt.open(self._uri)


def _alive(connection: Any) -> bool:
    """Whether the other end is there. `isAlive` alone still says yes after libvirtd was restarted, until it is used."""
    if connection is None:
        return False
    try:
        return bool(connection.isAlive() and connection.getLibVersion())
    except libvirt.libvirtError:
        return False


def _make_over(folder: Path, connection: Any) -> None:
    """Give a folder to the user that QEMU runs as, whom libvirt's capabilities name: it and root, and no other."""
    folder.mkdir(mode=0o700, exist_ok=True)
    label = ET.fromstring(connection.getCapabilities()).findtext(".//secmodel[model='dac']/baselabel")  # noqa: S314
    if label is not None:  # S314: the XML is libvirtd's own
        user, _, group = label.partition(":")
        os.chown(folder, int(user), int(group))


def _description(domain: Any) -> ET.Element:
    return ET.fromstring(domain.XMLDesc())  # noqa: S314 - the XML is libvirtd's own


def _lookup(connection: Any, uuid: str) -> Any | None:
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _suspend(domain: Any) -> None:
    if domain.state() == _HELD:  # from now on the pause is the user's, and whoever held the domain leaves it so
        with suppress(libvirt.libvirtError):
            domain.resume()
    if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
        domain.suspend()


@contextmanager
def _held(domain: Any) -> Iterator[None]:
    """Keep a running guest from running meanwhile, as one that was held before already.

    libvirt opens the tray, changes the disc and closes the tray, and the guest runs between any two of these. Linux
    closes an open tray by itself as soon as somebody opens the drive: before the disc is in, QEMU refuses the rest;
    after that, the drive stays empty for the guest, since QEMU looks at the disc only when it closes the tray itself.

    Not by libvirt's `suspend`: whoever dies in between would leave a VM that is as if its user had suspended it.
    """
    if domain.state()[0] == libvirt.VIR_DOMAIN_RUNNING:
        libvirt_qemu.qemuMonitorCommand(domain, '{"execute": "stop"}', 0)
    try:
        yield
    finally:
        if domain.state() == _HELD:
            domain.resume()


def _state(state: int, reason: int, name: str) -> DomainState:
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return DomainState(Power.OFF, cause=_OFF_CAUSES.get(reason, HaltCause.UNKNOWN), name=name)
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return DomainState(Power.OFF, cause=HaltCause.CRASHED, name=name)
    if state == libvirt.VIR_DOMAIN_PAUSED and reason not in _PASSING:
        held = [state, reason] == _HELD
        return DomainState(Power.PAUSED, problem=_PAUSE_PROBLEMS.get(reason), name=name, held=held)
    return DomainState(Power.RUNNING, name=name)


def _with_disk_errors(seen: DomainState, reason: int, domain: Any) -> DomainState:
    """A domain that an I/O error paused, with which error it was: asked only of those."""
    if seen.power is not Power.PAUSED or reason != libvirt.VIR_DOMAIN_PAUSED_IOERROR:
        return seen
    try:
        full = libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in domain.diskErrors().values()
    except libvirt.libvirtError:  # it went on, or off, in between
        return seen
    return msgspec.structs.replace(seen, problem=_NO_SPACE, short_of_space=True) if full else seen


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
