"""The last save of each disk of a VM, as its workers reported it. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from worker_service.contract import Status, VMStatus
from worker_service.contract.uri import InvalidUri, parse

_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_DISKS: Final = ("hda", "hdb")


class SavedDisk(NamedTuple):
    """A disk at the place that it was saved to."""

    uri: str
    sha256: str
    """Of the file there."""

    @property
    def origin(self) -> str:
        """The image that a start goes on from: exactly these bytes."""
        return f"{self.uri}#sha256={self.sha256}"


def saves_after(saves: Mapping[str, SavedDisk], status: VMStatus) -> Mapping[str, SavedDisk]:
    """Return the last save of each disk after a report.

    Only a halted VM has all of its disks saved. A halt that saved none leaves the earlier saves as the last ones.
    """
    if status.status is not Status.HALTED:
        return saves
    reports = {disk: status.disks[disk] for disk in _DISKS if disk in status.disks}
    found: Mapping[str, SavedDisk] = {
        disk: SavedDisk(report.saved_to, report.sha256)
        for disk, report in reports.items()
        if report.saved_to and report.sha256 and _can_be_fetched(report.saved_to, report.sha256)
    }
    return found or saves


def _can_be_fetched(uri: str, sha256: str) -> bool:
    try:
        return not parse(uri).sha256 and _SHA256.fullmatch(sha256) is not None
    except InvalidUri:
        return False
