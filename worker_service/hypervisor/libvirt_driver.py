"""What the drivers of libvirt share: a connection that is reopened, time limits, errors in words, plain commands."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import wraps
from typing import Any, Concatenate, Final, ParamSpec, TypeVar
from xml.etree import ElementTree as ET

import libvirt

from worker_service.contract import Code
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.base import EventSource
from worker_service.hypervisor.call_timeout import CallTimeout, SharedCall, call_with_timeout
from worker_service.hypervisor.libvirt_events import LibvirtEvents

_EVERYTHING: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)
"""What libvirt keeps beside a definition, and without which it refuses to remove that."""
# libvirt's state and reason of a pause that no libvirt client and no error has caused.
HELD: Final = [libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_UNKNOWN]
# Callers get errors as exceptions. libvirt would print each one on stderr too.
libvirt.registerErrorHandler(lambda _context, _error: None, None)


D = TypeVar("D", bound="LibvirtDriver")
P = ParamSpec("P")
T = TypeVar("T")


def bounded(times: float = 1) -> Callable[[Callable[Concatenate[D, P], T]], Callable[Concatenate[D, P], T]]:
    """Run a method with a timeout, after the shared check whether libvirt answers at all."""

    def decorate(method: Callable[Concatenate[D, P], T]) -> Callable[Concatenate[D, P], T]:
        @wraps(method)
        def call(self: D, /, *arguments: P.args, **keywords: P.kwargs) -> T:
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
                raise self._explained(err) from err

        return call

    return decorate


class LibvirtDriver:
    """The domains of one libvirt connection, which is reopened after a loss.

    Args:
        uri: libvirt connection URI, for example `qemu:///system`.
        limit_s: how long libvirt may take for an answer.
    """

    def __init__(self, uri: str, limit_s: float = 60.0) -> None:
        self._uri = uri
        self._limit_s = limit_s
        self._connection: Any = None
        self._liveness = SharedCall(limit_s, self._reach)

    def events(self, changed: Callable[[str], None], ended_by_host: Callable[[str], None]) -> EventSource:
        """Return the source of libvirt's events."""
        return LibvirtEvents(self._uri, changed, ended_by_host, self._limit_s)

    def suspend(self, uuid: str) -> None:
        """Pause in memory (virsh: suspend)."""
        self._on(uuid, _suspend)

    def resume(self, uuid: str) -> None:
        """Resume a paused domain (virsh: resume, dompmwakeup)."""
        self._on(uuid, _resume)

    @bounded()
    def power_off(self, uuid: str) -> None:
        """Power off at once (virsh: destroy)."""
        connection = self._connection
        domain = lookup(connection, uuid)
        if domain is not None and domain.isActive():
            domain.destroy()

    @bounded()
    def forget(self, uuid: str) -> None:
        """Remove the definition (virsh: undefine)."""
        connection = self._connection
        domain = lookup(connection, uuid)
        if domain is None:
            return
        if domain.isActive():  # libvirt would let it run without a definition
            raise HypervisorError(f"The domain {domain.name()!r} runs. It keeps its definition until it is off.")
        domain.undefineFlags(_EVERYTHING)

    @bounded()
    def snapshots(self, uuid: str) -> tuple[str, ...]:
        """Return the names of the snapshots of a domain that libvirt lists."""
        connection = self._connection
        domain = lookup(connection, uuid)
        return () if domain is None else tuple(domain.snapshotListNames())

    def send_keys(self, uuid: str, scancodes: bytes) -> None:  # noqa: ARG002 - as the interface names them
        """Raise HypervisorError: keys come over VNC."""
        raise HypervisorError(f"The screen of {uuid} takes its keys over VNC. Open its console.", retry=False)

    @bounded()
    def has_network(self, name: str) -> bool:
        """Return whether libvirt has a network of this name, active or not."""
        return _has_network(self._connection, name)

    def cpus(self) -> int:
        """Return the number of logical processors of the host."""
        return os.cpu_count() or 1

    @bounded()
    def _version(self) -> str:
        """Return the versions of the hypervisor and of libvirt, for people."""
        return f"{_dotted(self._connection.getVersion())}, libvirt {_dotted(self._connection.getLibVersion())}"

    @bounded()
    def connect(self) -> Any:
        """Return the libvirt connection. Raises HypervisorError."""
        return self._connection

    @bounded()
    def _on(self, uuid: str, act: Callable[[Any], object]) -> None:
        connection = self._connection
        domain = lookup(connection, uuid)
        if domain is None:
            raise HypervisorError(f"libvirt at {self._uri} has no domain {uuid}. `status` shows its present state.")
        act(domain)

    def _explained(self, err: Any) -> HypervisorError:
        """Return an error of libvirt in words, with what to do."""
        return _hypervisor_error(err, self._uri)

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


def description(domain: Any) -> ET.Element:
    """Return the XML of a domain as it is now."""
    return ET.fromstring(domain.XMLDesc())  # noqa: S314 - the XML is libvirtd's own


def lookup(connection: Any, uuid: str) -> Any | None:
    """Return a domain, or None if it does not exist."""
    try:
        return connection.lookupByUUIDString(uuid)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _suspend(domain: Any) -> None:
    if domain.state() == HELD:  # libvirt must own the pause: then the process that holds the domain does not resume it
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


@contextmanager
def unless_it_vanishes() -> Iterator[None]:
    """Ignore that a domain vanished between two calls of libvirt."""
    try:
        yield
    except libvirt.libvirtError as err:
        if err.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN:
            raise


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


def _has_network(connection: Any, name: str) -> bool:
    """Return whether libvirt has a network of this name."""
    try:
        connection.networkLookupByName(name)
    except libvirt.libvirtError as err:
        if err.get_error_code() == libvirt.VIR_ERR_NO_NETWORK:
            return False
        raise
    return True


def _dotted(number: int) -> str:
    """Return a version as people write it. Source: virConnectGetVersion."""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"
