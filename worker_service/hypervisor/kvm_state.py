"""Read the state of a libvirt domain: whether it is on, what ended it, what libvirt does with it, where its disks are.

Somebody else may change all of that with libvirt's own tools at any time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final
from xml.etree import ElementTree as ET

import libvirt
import msgspec

from worker_service.contract import HaltCause
from worker_service.hypervisor.base import DomainState, Power
from worker_service.hypervisor.kvm_xml import TARGETS
from worker_service.images.overlay import Layer

_OFF_CAUSES: Final[Mapping[int, HaltCause | None]] = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: None,  # has not run since it was defined, or since the host booted
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: HaltCause.GUEST,
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: HaltCause.KILLED,
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: HaltCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: None,  # its start failed
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: HaltCause.CRASHED,
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: HaltCause.MIGRATED,
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: HaltCause.SAVED,
}
_PAUSE_PROBLEMS: Final[Mapping[int, str]] = {
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "The guest is stopped by an I/O error on its disk. Check the data root's disk, "
    "then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "The guest was stopped by its watchdog. Look at its console, then resume it.",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "The guest has crashed and is held. Look at its console, then destroy it.",
}
_PAUSED_FOR: Final[Mapping[int, str]] = {
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "migration",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY: "migration",
    libvirt.VIR_DOMAIN_PAUSED_POSTCOPY_FAILED: "migration",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "save",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "dump",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "snapshot",
}
_NO_SPACE: Final = "The guest is stopped during a write: the data root is full. Free space there; then it continues."
_ASLEEP: Final = "The guest sleeps: it has suspended itself to memory. Resume wakes it, and so does shutdown first."
# Between two states: QEMU still runs, and the driver has to wait.
_PASSING: Final = frozenset({libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})
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
_OTHER_DISKS: Final = {target: disk for disk, target in TARGETS.items()}


def plain(state: int, reason: int, name: str) -> DomainState:
    """Return what libvirt's state and reason say, without another call."""
    if state == libvirt.VIR_DOMAIN_SHUTOFF:
        return DomainState(Power.OFF, cause=_OFF_CAUSES.get(reason, HaltCause.UNKNOWN), name=name)
    if state == libvirt.VIR_DOMAIN_CRASHED:
        return DomainState(Power.OFF, cause=HaltCause.CRASHED, name=name)
    if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
        return DomainState(Power.RUNNING, problem=_ASLEEP, name=name)
    if state == libvirt.VIR_DOMAIN_PAUSED and reason not in _PASSING:
        held = reason == libvirt.VIR_DOMAIN_PAUSED_UNKNOWN
        problem, job = _PAUSE_PROBLEMS.get(reason), _PAUSED_FOR.get(reason, "")
        return DomainState(Power.PAUSED, problem=problem, name=name, held=held, job=job)
    return DomainState(Power.RUNNING, name=name)


def detailed(domain: Any, state: int, reason: int) -> DomainState:
    """Return everything about a domain. Raises libvirtError, for example if it vanishes meanwhile."""
    observed = plain(state, reason, domain.name())
    text = domain.XMLDesc()
    runs, disks = _disks(text)
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


@lru_cache(maxsize=1024)
def _disks(xml: str) -> tuple[bool, Mapping[str, tuple[Layer, ...]]]:
    """Return whether XML is of a running domain, and the chains of its disks.

    It seldom changes, and reading it costs more than fetching it.
    """
    found = {}
    root = ET.fromstring(xml)  # noqa: S314 - the XML is libvirtd's own
    for disk in root.iterfind("./devices/disk[@device='disk']"):
        target = disk.find("target")
        name = _OTHER_DISKS.get(target.get("dev", "")) if target is not None else None
        if name is not None:
            found[name] = tuple(_layers(disk))
    return root.get("id") is not None, found


def _layers(disk: ET.Element) -> Iterator[Layer]:
    """Yield the layers of a disk. Nothing is known of what lies below the last one, which may be nothing."""
    element: ET.Element | None = disk
    form = disk.find("driver")
    while element is not None and (source := element.find("source")) is not None:
        yield Layer(_place(element.get("type", "file"), source), form.get("type", "raw") if form is not None else "raw")
        element = element.find("backingStore")
        form = element.find("format") if element is not None else None


def _place(kind: str, source: ET.Element) -> str:
    if kind == "file":
        return source.get("file", "")
    return f"{kind} {source.get('dev') or source.get('name') or source.get('volume') or ''}".strip()
