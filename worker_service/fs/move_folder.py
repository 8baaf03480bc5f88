"""A VM's folder moved to another place, which may be on another filesystem."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files, locks, verify

_LOCK: Final = "lock"
"""Held by whoever works on the VM: it makes one of its own wherever the folder is."""


def move(folder: Path, place: Path, uuid: str, record: str) -> Path:
    """Move a folder; returns its new place. Raises OSError, and all is as it was then.

    Between filesystems it is copied and read back, and only then removed. Cut off in between it is there twice.

    Args:
        folder: the folder, with its files.
        place: where it is to be; nothing is there yet.
        uuid: of the VM.
        record: name of the file that may change meanwhile, by those who hold the folder's flock.
    """
    try:
        atomic_files.rename_new(folder, place)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        _move_far(folder, place, part(place.parent, uuid), record)
    atomic_files.sync_folder(place.parent)
    atomic_files.sync_folder(folder.parent)
    return place


def part(base: Path, uuid: str) -> Path:
    """Where a copy of a VM's folder grows; what is there when nobody works on the VM is of no use."""
    return base / f".moving-{uuid}"


def _move_far(folder: Path, place: Path, copy: Path, record: str) -> None:
    gone = folder.with_name(f".gone-{folder.name}")
    for left in (copy, gone):
        shutil.rmtree(left, ignore_errors=True)
    try:
        copy.mkdir(mode=0o711)
        for path in folder.iterdir():
            if path.is_file() and path.name not in (record, _LOCK):
                verify.copy_verified(path, copy / path.name)
        with locks.locked(folder):
            verify.copy_verified(folder / record, copy / record)
            atomic_files.sync_folder(copy)
            atomic_files.rename_new(copy, place)
            atomic_files.sync_folder(place.parent)
            failpoint("aside.copied")
            folder.rename(gone)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    atomic_files.sync_folder(folder.parent)
    shutil.rmtree(gone, ignore_errors=True)
