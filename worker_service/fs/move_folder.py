"""Move a VM's folder to another place, which may be on another filesystem."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Final

from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files, locks, private, verify

_LOCK: Final = "lock"
"""The work lock of the VM. It is not copied: each helper makes one wherever the folder is."""


def move(folder: Path, place: Path, uuid: str, record: str) -> Path:
    """Move a folder and return its new place. Raises OSError and leaves everything as it was.

    Between filesystems the folder is copied and read back, and only then removed. An interruption in between leaves
    both copies.

    Args:
        folder: the folder, with its files.
        place: the new place, which does not exist yet.
        uuid: the VM's.
        record: name of the file that other processes may change meanwhile, under the folder's lock.
    """
    try:
        with locks.locked_folder(folder):
            atomic_files.rename_new(folder, place)
    except OSError as err:
        if err.errno != errno.EXDEV:
            raise
        _move_far(folder, place, part(place.parent, uuid), record)
    atomic_files.sync_folder(place.parent)
    atomic_files.sync_folder(folder.parent)
    return place


def part(base: Path, uuid: str) -> Path:
    """Return where the copy of a VM's folder grows. While no helper works on the VM, it is only a leftover."""
    return base / f".moving-{uuid}"


def _move_far(folder: Path, place: Path, copy: Path, record: str) -> None:
    old = folder.with_name(f".gone-{folder.name}")
    for leftover in (copy, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        copy.mkdir(mode=0o700)
        private.set_like_parent(copy, private.FOLDER)
        for path in folder.iterdir():
            if path.is_file() and path.name not in (record, _LOCK):
                verify.copy_verified(path, copy / path.name)
        with locks.locked_folder(folder):
            verify.copy_verified(folder / record, copy / record)
            atomic_files.sync_folder(copy)
            atomic_files.rename_new(copy, place)
            atomic_files.sync_folder(place.parent)
            failpoint("failed.copied")
            folder.rename(old)
    except OSError:
        shutil.rmtree(copy, ignore_errors=True)
        raise
    atomic_files.sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)
