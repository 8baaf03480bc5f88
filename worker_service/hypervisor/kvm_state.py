"""Read the state of a domain of libvirt's qemu driver, with what libvirt does with it and where its disks are.

Somebody else may change all of that with libvirt's own tools at any time.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final

import libvirt
import msgspec

from worker_service.hypervisor.base import DomainState
from worker_service.hypervisor.kvm_xml import TARGETS
from worker_service.hypervisor.libvirt_state import disks_in, plain

_NO_SPACE: Final = "The guest is stopped during a write: the data root is full. Free space there; then it continues."
_JOBS: Final[Mapping[int, str]] = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_SAVE: "save",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: "migration",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_REVERT: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_SNAPSHOT_DELETE: "snapshot",
    libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP: "dump",
    libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP: "backup",
}
"""The jobs that somebody else starts. A boot is one of the driver's own."""
_DEVICES: Final = tuple(TARGETS.items())


def detailed(domain: Any, state: int, reason: int) -> DomainState:
    """Return everything about a domain. Raises libvirtError, for example if it vanishes meanwhile."""
    observed = plain(state, reason, domain.name())
    text = domain.XMLDesc()
    runs, disks = disks_in(text, _DEVICES)
    # If it went off or on between the two calls, its XML is that of the other state.
    found: dict[str, Any] = {"disks": disks if runs is observed.on else {}}
    if not observed.on:
        found["saved_memory"] = bool(domain.hasManagedSaveImage())
    else:
        found["job"] = observed.job or _job(domain) or ("block job" if "<mirror " in text else "")
        if reason == libvirt.VIR_DOMAIN_PAUSED_IOERROR and observed.problem and _is_short_of_space(domain):
            found |= {"problem": _NO_SPACE, "short_of_space": True}
    return msgspec.structs.replace(observed, **found)


def _job(domain: Any) -> str:
    """Return what libvirt does with a running domain for somebody.

    The question waits for whatever uses QEMU's monitor just now, so a busy one is not asked.
    """
    with suppress(libvirt.libvirtError):  # it went off in between
        if domain.controlInfo()[0] != libvirt.VIR_DOMAIN_CONTROL_OCCUPIED:
            return _JOBS.get(domain.jobStats().get("operation", 0), "")
    return ""


def _is_short_of_space(domain: Any) -> bool:
    try:
        return libvirt.VIR_DOMAIN_DISK_ERROR_NO_SPACE in domain.diskErrors().values()
    except libvirt.libvirtError:  # it was resumed or went off in between
        return False
