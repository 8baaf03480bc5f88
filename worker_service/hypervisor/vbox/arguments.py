"""The places and names of what a machine has, and the command that changes a disc."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from worker_service.hypervisor.base import DomainSpec

DRIVES: Final = "drives"
"""The controller of all disks and discs. It is of the kind IDE: the firmware boots from it, and every guest has a
driver; cloud kernels have none for the other kinds."""
PLACES: Final = {"hda": (0, 0), "hdb": (0, 1)}
"""Disk -> its port and device."""
CD: Final = (1, 0)
SEED: Final = (1, 1)
"""The places of the two drives for discs."""
EMPTY: Final = "emptydrive"
NO_DISC: Final = frozenset({"none", EMPTY})
"""What `showvminfo` says of a drive without a disc."""
FOLDER: Final = "vbox"
"""The folder in a VM's own, for VirtualBox's settings, its log and what the serial ports write."""


def folder_of(spec: DomainSpec) -> Path:
    """Return VirtualBox's folder in the VM's."""
    return spec.console_log.parent / FOLDER


def serial_log(log: Path) -> Path:
    """Return the file to which VirtualBox writes what belongs into a log: it empties that file at each start."""
    return log.parent / FOLDER / log.name


def disc_name(folder: Path, disc: Path) -> Path:
    """Return a name for a disc by which VirtualBox believes that it is one."""
    return folder / f"{disc.name}.iso"


def drive(uuid: str, place: tuple[int, int], disc: Path | None) -> tuple[str, ...]:
    """Return the command that puts a disc into a drive, or leaves it empty."""
    medium = EMPTY if disc is None else str(disc)
    forced = ("--forceunmount",) if disc is None else ()
    return (*_at(uuid, place), "--type", "dvddrive", "--medium", medium, *forced)


def medium_key(place: tuple[int, int]) -> str:
    """Return the name under which `showvminfo` says what is in a place."""
    port, device = place
    return f"{DRIVES}-{port}-{device}"


def _at(uuid: str, place: tuple[int, int]) -> tuple[str, ...]:
    port, device = map(str, place)
    return ("storageattach", uuid, "--storagectl", DRIVES, "--port", port, "--device", device)
