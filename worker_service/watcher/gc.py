"""Garbage collection in the data root: old tombstones, locks, and unfinished files."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.fs import locks

_DAY_S: Final = 86_400.0
_TOMBSTONE_S: Final = 30 * _DAY_S
"""Longer than any delay of a command: Salt keeps jobs for a day, and a restored backup of a master is younger."""
_PART_S: Final = 3600.0
_PART: Final = re.compile(r"\.(.+)\.part")
"""The name that `atomic_files.write` gives an unfinished file."""


def sweep(root: Path, now_s: float) -> None:
    """Remove old tombstones, locks and unfinished files, which no other code removes.

    Args:
        root: the data root.
        now_s: seconds since the epoch.
    """
    for path in _older(root.glob("images/*/*.lock"), now_s - _DAY_S):
        locks.remove_lock(path)
    for path in _older(root.glob("tombstones/[!.]*"), now_s - _TOMBSTONE_S):
        path.unlink(missing_ok=True)
    unfinished = (path for pattern in (".*.part", "*/.*.part", "*/*/.*.part") for path in root.glob(pattern))
    for path in _older((path for path in unfinished if _PART.fullmatch(path.name)), now_s - _PART_S):
        path.unlink(missing_ok=True)


def _older(paths: Iterator[Path], than_s: float) -> Iterator[Path]:
    for path in paths:
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < than_s:
                yield path
