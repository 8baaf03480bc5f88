"""Read the state of a domain of libvirt's libxl driver.

Two of its states are not what they seem. While a guest reboots, its domain is "shut off (shutdown)" for a second or
three, between the end of one libxl domain and the start of the next. And a domain whose QEMU has died stays "running":
Xen keeps its memory, and the guest stands still.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import libvirt
import msgspec

from worker_service.contract import HaltCause
from worker_service.hypervisor.base import DomainState, Power
from worker_service.hypervisor.libvirt_state import disks_in, plain
from worker_service.hypervisor.xen.xml import DEVICES

DOMAIN_0: Final = 0
_QMP: Final = Path("/run/xen")
_SOCKETS: Final = Path("/proc/net/unix")


def qemu_is_dead(domain_id: int, folder: Path = _QMP, sockets: Path = _SOCKETS) -> bool:
    """Return whether the QEMU of a running domain has gone and left its socket behind.

    Each domain of ours has a QEMU: for its devices, or at least for its disks. A process in another network namespace
    than libvirtd sees neither's sockets, and then it knows nothing.
    """
    name = f"qmp-libxl-{domain_id}"
    if not (folder / name).exists():
        return False
    try:
        listening = [line.rpartition(" ")[2] for line in sockets.read_text("utf-8", "replace").splitlines()]
    except OSError:
        return False
    sees_libvirt = any("/libvirt/" in path and path.endswith("-sock") for path in listening)
    return sees_libvirt and not any(path.endswith(f"/xen/{name}") for path in listening)


def detailed(domain: Any, is_dead: Callable[[int], bool]) -> DomainState:
    """Return everything about a domain. Raises libvirtError, for example if it vanishes meanwhile."""
    observed = _after_a_reboot(domain)
    if observed.on and is_dead(domain.ID()):
        return DomainState(Power.OFF, cause=HaltCause.CRASHED, name=observed.name)
    runs, disks = disks_in(domain.XMLDesc(), DEVICES)
    # If it went off or on between the two calls, its XML is that of the other state.
    found: dict[str, Any] = {"disks": disks if runs is observed.on else {}}
    if not observed.on:
        found["saved_memory"] = bool(domain.hasManagedSaveImage())
    return msgspec.structs.replace(observed, **found)


def _after_a_reboot(domain: Any) -> DomainState:
    """Return the plain state, after the end of a reboot that is under way.

    libvirt holds the domain's job from the end of the guest to its next start. Setting what is set already does
    nothing, and waits for the job.
    """
    observed = of_foreign(domain)
    if observed.cause is HaltCause.GUEST:
        with suppress(libvirt.libvirtError):  # it is transient, or the job lasts longer than libvirt waits
            domain.setAutostart(domain.autostart())
        observed = of_foreign(domain)
        if not observed.on and domain.isActive():  # its end is not over: QEMU may still write
            return DomainState(Power.RUNNING, name=observed.name)
    return observed


def of_foreign(domain: Any) -> DomainState:
    """Return what one call of libvirt says."""
    state, reason = domain.state()
    return plain(state, reason, domain.name())
