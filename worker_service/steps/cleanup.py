"""Remove the files that an ended VM leaves on the worker."""

from __future__ import annotations

from typing import Final

from worker_service.fs import atomic_files
from worker_service.state.bases import image_uris
from worker_service.state.context import WorkerContext
from worker_service.state.record import Record
from worker_service.steps import disk_guard, seed_files

_DISKS: Final = ("hd[ab].*", "*.part")
"""Overlays, with what snapshots and copies put beside them, flattened disks, and halves."""


def drop_parts(worker: WorkerContext, record: Record) -> None:
    """Remove the parts of unfinished fetches of this VM from the cache."""
    for uri in image_uris(record):
        worker.cache.drop_part(uri)


def remove_disks(worker: WorkerContext, record: Record) -> None:
    """Remove the disks of a VM, complete or not, wherever they lie. Raises as `require_idle` does."""
    disk_guard.require_idle(worker, record)
    folder = worker.store.folder(record.uuid)
    disk_guard.remove_files(disk_guard.disk_files(worker, record))
    for path in {path for pattern in _DISKS for path in folder.glob(pattern)}:
        path.unlink(missing_ok=True)
    seed_files.remove_seed(folder)
    atomic_files.sync_folder(folder)
