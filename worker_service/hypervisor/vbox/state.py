"""The state of a machine, by VBoxManage and by the log of its last run.

VirtualBox says `poweroff` however a run ended, and forgets an abort at the next start. The log has it: the states of
the run, and a line for each request to power off, before the guest begins to end or after it. A host that lost power
leaves a run without an end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Final

from worker_service.contract import HaltCause
from worker_service.core.errors import BadImage
from worker_service.hypervisor.base import DomainState, Power
from worker_service.hypervisor.vbox.arguments import PLACES, medium_key
from worker_service.images import vdi
from worker_service.images.overlay import Layer

GURU: Final = "gurumeditation"
"""The state of a machine whose guest has crashed. Its process stays until somebody powers it off."""
_ON: Final[Mapping[str, DomainState]] = {
    "running": DomainState(Power.RUNNING),
    "paused": DomainState(Power.PAUSED),
    "starting": DomainState(Power.RUNNING),
    "stopping": DomainState(Power.RUNNING),
    "restoring": DomainState(Power.RUNNING),
    "settingup": DomainState(Power.RUNNING),
    GURU: DomainState(Power.RUNNING, problem="The guest has crashed. It is powered off, and its disks stay."),
    "saving": DomainState(Power.PAUSED, job="save"),
    "livesnapshotting": DomainState(Power.RUNNING, job="snapshot"),
    "onlinesnapshotting": DomainState(Power.RUNNING, job="snapshot"),
    "deletingsnapshotlive": DomainState(Power.RUNNING, job="snapshot"),
    "deletingsnapshotlivepaused": DomainState(Power.PAUSED, job="snapshot"),
    "teleporting": DomainState(Power.RUNNING, job="migration"),
    "teleportingpausedvm": DomainState(Power.PAUSED, job="migration"),
    "teleportingin": DomainState(Power.RUNNING, job="migration"),
}
_SAVED: Final = frozenset({"saved", "aborted-saved", "abortedsaved"})
_STATE: Final = re.compile(rb"Console: Machine state changed to '(\w+)'")
_ENDING: Final = b"to 'POWERING_OFF'"
_REQUEST: Final = b"Console::powerDown(): A request to power off the VM has been issued"
_ORPHANED: Final = b"VBoxSVC became unavailable"
"""A machine ends with VirtualBox's daemon."""
_STUCK: Final = b"Stuck"
_RAN: Final = frozenset({b"Running", b"Paused", _STUCK})
_FULL: Final = re.compile(rb"runtime error '(DrvVD_DISKFULL|DevATA_DISKFULL|DevAHCI_DISKFULL|\w*DISKFULL)'")
_IO_ERROR: Final = re.compile(rb"runtime error '(\w*(?:DISK|Dev\w+)_?\w*(?:ERROR|PROBLEM|IOERR)\w*)'")
_LOG_BYTES: Final = 8 << 20
_NO_SPACE: Final = "The guest is stopped during a write: the data root is full. Free space there; then it continues."
_BROKEN: Final = "The guest is stopped by an I/O error on its disk. Check the data root's disk, then resume it."
_MOST_LAYERS: Final = 64


def of(info: Mapping[str, str]) -> DomainState:
    """Return the state of a machine from what VBoxManage says about it, and from its files."""
    word, log = info.get("VMState", ""), Path(info.get("LogFldr", "")) / "VBox.log"
    name, disks = info.get("name", ""), disks_of(info)
    if known := _ON.get(word):
        full, problem = _pause(log) if word == "paused" else (False, None)
        return DomainState(
            known.power,
            problem=problem or known.problem,
            name=name,
            short_of_space=full,
            job=known.job,
            disks=disks,
        )
    saved = word in _SAVED
    cause = HaltCause.SAVED if saved else HaltCause.CRASHED if word == "aborted" else end_of(log)
    return DomainState(Power.OFF, cause=cause, name=name, saved_memory=saved, disks=disks)


def end_of(log: Path) -> HaltCause | None:
    """Return how the run in a log ended, or None if its guest did not run, or if the log has no end."""
    try:
        found = log.stat()
        return _end_in(log, found.st_mtime_ns, found.st_size)
    except OSError:
        return None


@lru_cache(maxsize=1024)
def _end_in(log: Path, _changed: int, _size: int) -> HaltCause | None:
    """Return how a run ended. A log of this time and size is read once."""
    return end_in(_text(log))


def end_in(text: bytes) -> HaltCause | None:
    """Return how the run in the text of a log ended."""
    states = _STATE.findall(text)
    if not _RAN.intersection(states) or (states[-1] in _RAN and _ORPHANED not in text):
        return None
    if _STUCK in states or _ORPHANED in text:
        return HaltCause.CRASHED
    if states[-1] == b"Saved":
        return HaltCause.SAVED
    # A guest that ends begins to, and then VirtualBox requests the rest itself.
    return HaltCause.KILLED if _REQUEST in text.partition(_ENDING)[0] else HaltCause.GUEST


def _pause(log: Path) -> tuple[bool, str | None]:
    """Return whether a pause is for want of space, and the problem of one that nobody asked for."""
    last = _text(log).rpartition(b"Machine state changed to 'Running'")[2]
    if _FULL.search(last):
        return True, _NO_SPACE
    return False, _BROKEN if _IO_ERROR.search(last) else None


def _text(log: Path) -> bytes:
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _LOG_BYTES))
            return file.read()
    except OSError:
        return b""


def disks_of(info: Mapping[str, str]) -> Mapping[str, tuple[Layer, ...]]:
    """Return the files of a machine's disks. The base is named by the comment in the file on it, as it was made."""
    found = {}
    for disk_name, place in PLACES.items():
        path = info.get(medium_key(place), "none")
        if path not in ("none", "emptydrive", ""):
            found[disk_name] = _layers(Path(path))
    return found


def _layers(path: Path) -> tuple[Layer, ...]:
    found, places = [Layer(str(path), "vdi")], {}
    try:
        header = _header(path)
        if header.parent != vdi.NO_UUID and not header.comment:  # a snapshot lies on another file of the VM
            for other in path.parent.glob("*.vdi"):
                places[_header(other).uuid] = other
        while header.parent in places and len(found) < _MOST_LAYERS:
            path = places[header.parent]
            found.append(Layer(str(path), "vdi"))
            header = _header(path)
    except (OSError, BadImage):
        return tuple(found)
    return (*found, Layer(header.comment, "")) if header.comment else tuple(found)


def _header(path: Path) -> vdi.Vdi:
    disk = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return vdi.read(disk)
    finally:
        os.close(disk)
