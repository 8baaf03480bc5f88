"""What a VM that is over leaves behind on the worker, and its removal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.fs import atomic_files
from worker_service.state.context import Worker
from worker_service.state.record import Record
from worker_service.steps import seed_files
from worker_service.transfer.uri import blank_size, parse

_DAY_S: Final = 86_400.0
_TOMBSTONE_S: Final = 30 * _DAY_S
"""Longer than a command is late: Salt keeps jobs for a day, and a master restored from a backup is behind by less."""
_PART_S: Final = 3600.0
_PART: Final = re.compile(r"\.(.+)\.part")
"""What `durable.write` names a file before it is whole."""


def sweep(root: Path, now_s: float) -> None:
    """Remove what nobody takes away when it has served: old tombstones, locks, and halves of files.

    Args:
        root: the data root.
        now_s: seconds since the epoch.
    """
    for path in _older(root.glob("images/*/*.lock"), now_s - _DAY_S):
        atomic_files.remove_lock(path)
    for path in _older(root.glob("tombstones/[!.]*"), now_s - _TOMBSTONE_S):
        path.unlink(missing_ok=True)
    halves = (path for pattern in (".*.part", "*/.*.part", "*/*/.*.part") for path in root.glob(pattern))
    for path in _older((path for path in halves if _PART.fullmatch(path.name)), now_s - _PART_S):
        path.unlink(missing_ok=True)


def _older(paths: Iterator[Path], than_s: float) -> Iterator[Path]:
    for path in paths:
        with suppress(FileNotFoundError):
            if path.lstat().st_mtime < than_s:
                yield path


def drop_parts(worker: Worker, record: Record) -> None:
    """Remove what broken-off fetches of this VM left in the cache."""
    for uri in (record.spec.hda_image, record.spec.hdb_image, record.spec.cd_image):
        if uri and blank_size(uri) is None:
            worker.cache.drop_part(parse(uri))


def remove_disks(folder: Path) -> None:
    """Remove the disks in a VM's folder, finished or not."""
    for path in {*folder.glob("*.qcow2"), *folder.glob("*.sealed.*"), *folder.glob("*.part")}:
        path.unlink(missing_ok=True)
    seed_files.remove_seed(folder)
    atomic_files.sync_folder(folder)
