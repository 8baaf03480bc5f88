"""The last save of each disk of a VM, as its workers reported it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from worker_service.contract import Status, VMStatus
from worker_service.contract.uri import InvalidUri, parse

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DISKS: Final[tuple[str, ...]] = ("hda", "hdb")


class SavedDisk(NamedTuple):
    """A disk at the place that it was saved to."""

    uri: str
    sha256: str
    """Of the file there."""
    generation: int = 0
    """The command at which its worker reported it first."""

    @property
    def origin(self) -> str:
        """The image that a start goes on from: exactly these bytes."""
        return f"{self.uri}#sha256={self.sha256}"


def saves_after(saves: Mapping[str, SavedDisk], status: VMStatus) -> Mapping[str, SavedDisk]:
    """Return the last save of each disk after a report.

    Only a halted VM has all of its disks saved. A halt that saved none leaves the earlier saves as the last ones. If
    only one of two disks was saved, the other one goes on from where this instance had started. Without any known save,
    as of a VM that was adopted, both do.
    """
    if status.status is not Status.HALTED:
        return saves or _origins(status)
    reports = {disk: status.disks[disk] for disk in _DISKS if disk in status.disks}
    found: dict[str, SavedDisk] = {
        disk: _first(saves.get(disk), save)
        for disk, report in reports.items()
        if (save := _saved(report.saved_to or "", report.sha256 or "", status.generation)) is not None
    }
    return {**_origins(status), **found} if found else saves or _origins(status)


def _first(known: SavedDisk | None, save: SavedDisk) -> SavedDisk:
    """Return a save as it was reported first: later reports of the same one may have other generations."""
    return known if known is not None and known.origin == save.origin else save


def _origins(status: VMStatus) -> dict[str, SavedDisk]:
    """Return the saves from which this instance started, by disk."""
    parts = {disk: status.origin[disk].partition("#sha256=") for disk in _DISKS if disk in status.origin}
    return {disk: save for disk, (uri, _, sha256) in parts.items() if (save := _saved(uri, sha256)) is not None}


def _saved(uri: str, sha256: str, generation: int = 0) -> SavedDisk | None:
    """Return a saved disk, or None if no start could fetch it."""
    try:
        fetchable = _SHA256.fullmatch(sha256) is not None and not parse(uri).sha256
    except InvalidUri:
        return None
    return SavedDisk(uri, sha256, generation) if fetchable else None
