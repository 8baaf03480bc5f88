"""Machines whose process, settings and log are as they were: VBoxManage need not be asked about their state again.

A question costs as much processor time as a hundred of these looks, and a worker looks at all of its VMs all the time.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from worker_service.hypervisor.base import DomainState
from worker_service.hypervisor.vbox import events


class Stamp(NamedTuple):
    """What a change of a machine changes."""

    process: int | None
    files: tuple[tuple[int, int, int], ...]
    """Inode, time in nanoseconds, size."""

    @property
    def newest_s(self) -> float:
        """Return the time of the last change of a file."""
        return max((changed for _inode, changed, _size in self.files), default=0) / 1e9


class Known(NamedTuple):
    """What VirtualBox has said about a machine, and what followed from it."""

    info: Mapping[str, str]
    state: DomainState
    stamp: Stamp


class Unchanged:
    """The states of machines, for as long as nothing has happened to them."""

    def __init__(self) -> None:
        self._known: dict[str, Known] = {}

    def known(self, uuid: str, *, registered: bool = False) -> Known | None:
        """Return what is known about a machine, or None if that may have changed.

        Args:
            uuid: of the machine.
            registered: VirtualBox has just said that it has the machine. One that is off may be unregistered unnoticed.
        """
        known = self._known.get(uuid)
        if known is None or (known.stamp.process is None and not registered):
            return None
        return known if stamp_of(events.by_machine().get(uuid), known.info) == known.stamp else None

    def note(self, uuid: str, info: Mapping[str, str], state: DomainState, at: float) -> None:
        """Note what VirtualBox has said, and the time of the question as `time.time()`."""
        stamp = stamp_of(events.by_machine().get(uuid), info)
        if state.on is (stamp.process is not None) and stamp.newest_s < at - events.SETTLED_S:
            self._known[uuid] = Known(info, state, stamp)

    def has_ended(self, uuid: str) -> bool:
        """Return whether a machine had a process that is gone."""
        known = self._known.get(uuid)
        return known is not None and known.stamp.process is not None and uuid not in events.by_machine()

    def keep(self, uuids: Collection[str]) -> None:
        """Forget all machines but these."""
        self._known = {uuid: known for uuid, known in self._known.items() if uuid in uuids}


def stamp_of(process: int | None, info: Mapping[str, str]) -> Stamp:
    """Return the stamp of a machine, by the pid of its process and what VirtualBox says about it."""
    files = []
    for path in (Path(info.get("CfgFile", "")), Path(info.get("LogFldr", "")) / "VBox.log"):
        with suppress(OSError):
            found = path.stat()
            files.append((found.st_ino, found.st_mtime_ns, found.st_size))
    return Stamp(process, tuple(files))
