"""Read libvirt's states and domain XML, whatever the hypervisor: is a domain on, what ended it, where are its disks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Final
from xml.etree import ElementTree as ET

import libvirt

from worker_service.contract import HaltCause
from worker_service.hypervisor.base import DomainState, Power
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
_ASLEEP: Final = "The guest sleeps: it has suspended itself to memory. Resume wakes it, and so does shutdown first."
# Between two states: QEMU still runs, and the driver has to wait.
_PASSING: Final = frozenset({libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP})


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


@lru_cache(maxsize=1024)
def disks_in(xml: str, devices: tuple[tuple[str, str], ...]) -> tuple[bool, Mapping[str, tuple[Layer, ...]]]:
    """Return whether XML is of a running domain, and the chains of its disks.

    `devices`: (disk, its device) for each disk of a VM.

    It seldom changes, and reading it costs more than fetching it.
    """
    found = {}
    named = {device: disk for disk, device in devices}
    root = ET.fromstring(xml)  # noqa: S314 - the XML is libvirtd's own
    for disk in root.iterfind("./devices/disk[@device='disk']"):
        target = disk.find("target")
        name = named.get(target.get("dev", "")) if target is not None else None
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
