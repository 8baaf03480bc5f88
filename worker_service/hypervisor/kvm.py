"""The `kvm` driver: libvirt's qemu driver, with KVM if the probe passes, otherwise with emulation (TCG)."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from xml.etree import ElementTree as ET

import libvirt
import libvirt_qemu

from worker_service.contract import Code, HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.hypervisor import kvm_log, kvm_state
from worker_service.hypervisor.base import ABSENT, DomainSpec, DomainState
from worker_service.hypervisor.call_timeout import CallTimeout, SharedCall, call_with_timeout
from worker_service.hypervisor.kvm_xml import GUEST_AGENT_PORT, SEED_TARGET, cd_element, domain_xml, seed_element
from worker_service.hypervisor.screenshot_png import png

_GUEST_AGENT_S: Final = 1
_BOOT_TIMES: Final = 10
"""How many times longer than another call a boot may take: many boots on a busy host do, and a timeout costs a try."""
_EVERYTHING: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
"""What libvirt keeps beside a definition, and without which it refuses to remove that."""
# libvirt's state and reason of a pause that no libvirt client and no error has caused.
_HELD: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN]
# Callers get errors as exceptions. libvirt would print each one on stderr too.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


P = ParamSpec("P")
T = TypeVar("T")


def _bounded(times: float = 1) -> Callable[[Callable[Concatenate[Kvm, P], T]], Callable[Concatenate[Kvm, P], T]]:
    """Run a method with a timeout, after the shared check whether libvirt answers at all."""

    def decorate(method: Callable[Concatenate[Kvm, P], T]) -> Callable[Concatenate[Kvm, P], T]:
        @wraps(method)
        def call(self: Kvm, /, *arguments: P.args, **keywords: P.kwargs) -> T:
            limit_s = self._limit_s
            try:
                self._liveness.result()
                limit_s *= times
                return call_with_timeout(limit_s, lambda: method(self, *arguments, **keywords))
            except CallTimeout:
                raise HypervisorError(
                    f"libvirt at {self._uri} has not answered for {limit_s:g} s: it, or the VM's QEMU, is stopped or "
                    "hangs. The call may still take effect. Check libvirtd (systemctl status libvirtd) and "
                    "restart it if it hangs; running VMs keep running."
                ) from None
            except libvirt.libvirtError as err:
                raise _hypervisor_error(err, self._uri) from err

        return call

    return decorate


class Kvm:
    """Domains of one libvirt connection, which is reopened after a loss.

    Args:
        uri: libvirt connection URI, for example `qemu:///system`.
        accelerated: returns whether KVM works here; called only to define a domain.
        logs: libvirt's folder of domain logs.
        limit_s: how long libvirt may take for an answer.
        qemu_user: the user for which disks and images are readable.
    """

    name = "kvm"

    def __init__(
        self,
        uri: str,
        accelerated: Callable[[], bool],
        logs: Path = Path("/var/log/libvirt/qemu"),
        limit_s: float = 60.0,
        qemu_user: User | None = None,
    ) -> None:
        self._uri = uri
        self._logs = logs
        self._accelerated = accelerated
        self._limit_s = limit_s
        self._qemu_user = qemu_user
        self._connection: Any = None
        self._liveness = SharedCall(limit_s, self._reach)

    def start(self, spec: DomainSpec) -> None:
        """Define and boot a domain. For a domain that is on, change nothing."""
        self._define_and_boot(domain_xml(spec, accelerated=self._accelerated()), spec)

    @_bounded(_BOOT_TIMES)
    def _define_and_boot(self, xml: str, spec: DomainSpec) -> None:
        connection = self._connection
        domain = _lookup(connection, spec.uuid)
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

    @_bounded()
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

    @_bounded()
    def states(self, own: Collection[str] = ()) -> Mapping[str, DomainState]:
        """Return the state of every domain. A foreign one costs no call of libvirt of its own."""
        connection = self._connection
        found: dict[str, DomainState] = {}
        for domain, stats in connection.getAllDomainStats(libvirt.VIR_DOMAIN_STATS_STATE):
            uuid, state, reason = domain.UUIDString(), stats["state.state"], stats["state.reason"]
            if uuid not in own:
                found[uuid] = kvm_state.plain(state, reason, domain.name())
                continue
            with _unless_it_vanishes():
                found[uuid] = kvm_state.detailed(domain, state, reason)
        return found

    def logged_end(self, uuid: str, name: str) -> HaltCause | None:
        """Return how a domain's last run ended, by libvirt's log, or None if the log has no run or no end."""
        return kvm_log.last_end(self._logs / f"{name}.log", uuid)

    def suspend(self, uuid: str) -> None:
        """Pause in memory (virsh: suspend)."""
        self._on(uuid, _suspend)

    def resume(self, uuid: str) -> None:
        """Resume a paused domain (virsh: resume, dompmwakeup)."""
        self._on(uuid, _resume)

    def shutdown(self, uuid: str) -> None:
        """Press the ACPI power button (virsh: shutdown)."""
        self._on(uuid, _press)

    @_bounded()
    def power_off(self, uuid: str) -> None:
        """Power off at once (virsh: destroy)."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is not None and domain.isActive():
            domain.destroy()

    @_bounded()
    def forget(self, uuid: str) -> None:
        """Remove the definition (virsh: undefine)."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None:
            return
        if domain.isActive():  # libvirt would let it run without a definition
            raise HypervisorError(f"The domain {domain.name()!r} runs. It keeps its definition until it is off.")
        domain.undefineFlags(_EVERYTHING)

    @_bounded()
    def snapshots(self, uuid: str) -> tuple[str, ...]:
        """Return the names of the snapshots of a domain that libvirt lists."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        return () if domain is None else tuple(domain.snapshotListNames())

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
            if _description(domain).find(f"./devices/disk/target[@dev='{SEED_TARGET}']") is not None:
                domain.updateDeviceFlags(xml, flags | libvirt.VIR_DOMAIN_DEVICE_MODIFY_FORCE)

        self._on(uuid, eject)

    @_bounded()
    def guest_agent_answers(self, uuid: str) -> bool:
        """Ping the qemu-guest-agent if the guest has opened its port."""
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
            return False  # the port is open and the agent does not answer (yet): the next pass asks again
        return True

    @_bounded()
    def console_address(self, uuid: str) -> str:
        """Return the VNC socket of a running domain as `unix:/path`; empty if it has none."""
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None or not domain.isActive():
            return ""
        listen = _description(domain).find("./devices/graphics/listen[@type='socket']")
        return f"unix:{listen.get('socket')}" if listen is not None and listen.get("socket") else ""

    @_bounded()
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

    @_bounded()
    def has_network(self, name: str) -> bool:
        """Return whether libvirt has a network of this name, active or not."""
        return kvm_state.has_network(self._connection, name)

    def memory_mib(self) -> int:
        """Return the memory of the host in MiB."""
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20

    def cpus(self) -> int:
        """Return the number of logical processors of the host."""
        return os.cpu_count() or 1

    @_bounded()
    def connect(self) -> Any:
        """Return the libvirt connection. Raises HypervisorError."""
        return self._connection

    @_bounded()
    def _on(self, uuid: str, act: Callable[[Any], object]) -> None:
        connection = self._connection
        domain = _lookup(connection, uuid)
        if domain is None:
            raise HypervisorError(f"libvirt at {self._uri} has no domain {uuid}. `status` shows its present state.")
        act(domain)

    def _reach(self) -> None:
        """Reopen the connection unless it is alive."""
        if not _alive(self._connection):
            self._connection = libvirt.open(self._uri)


def _alive(connection: Any) -> bool:
    """Return whether libvirtd answers. After a restart of libvirtd, `isAlive` alone is True until the next call."""
    if connection is None:
        return False
    try:
        return bool(connection.isAlive() and connection.getLibVersion())
    except libvirt.libvirtError:
        return False


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
    if domain.state() == _HELD:  # libvirt must own the pause: then the process that holds the domain does not resume it
        with suppress(libvirt.libvirtError):
            domain.resume()
    if domain.state()[0] != libvirt.VIR_DOMAIN_PAUSED:
        domain.suspend()


def _resume(domain: Any) -> None:
    state = domain.state()[0]
    if state == libvirt.VIR_DOMAIN_PAUSED:
        domain.resume()
    elif state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()


def _press(domain: Any) -> None:
    if domain.state()[0] == libvirt.VIR_DOMAIN_PMSUSPENDED:
        domain.pMWakeup()  # a guest that sleeps takes the button for the end of its sleep
    if domain.isActive():
        domain.shutdownFlags(libvirt.VIR_DOMAIN_SHUTDOWN_ACPI_POWER_BTN)


@contextmanager
def _unless_it_vanishes() -> Iterator[None]:
    """Ignore that a domain vanished between two calls of libvirt."""
    try:
        yield
    except libvirt.libvirtError as err:
        if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


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
        if domain.state() == _HELD:
            domain.resume()


def _hypervisor_error(err: Any, uri: str) -> HypervisorError:
    code, text = err.get_error_code(), err.get_error_message()
    if code == libvirt.VIR_ERR_OPERATION_INVALID:
        return HypervisorError(
            f"libvirt refused: {text}. `status` shows the VM's present state.", code=Code.CONFLICT, retry=False
        )
    if err.get_error_domain() in (libvirt.VIR_FROM_RPC, libvirt.VIR_FROM_REMOTE) or code == libvirt.VIR_ERR_NO_CONNECT:
        return HypervisorError(
            f"libvirt does not answer at {uri}: {text}. Start libvirtd and virtlogd; running VMs keep running."
        )
    return HypervisorError(f"libvirt at {uri} failed: {text}. See the VM's helper.log and libvirtd's log.")
