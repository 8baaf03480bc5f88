"""The folders of VMs: where each one is, its moves to and from failed_to_save, and its removal."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from worker_service.core.errors import NotFound
from worker_service.fs import atomic_files, locks, move_folder
from worker_service.state.record import Record

RECORD_FILE: Final = "record.json"
DESTROYED_RECORD_FILE: Final = "record.forgotten.json"
"""Name of the record in a folder of failed_to_save whose VM was destroyed."""

_HALF_MADE_S: Final = 60.0


class VMFolders:
    """The folders below `vms` and `failed_to_save`."""

    def __init__(self, root: Path) -> None:
        self.vms = root / "vms"
        self.failed = root / "failed_to_save"

    def find(self, uuid: str) -> Path:
        """Return the folder of a VM, wherever it is now; raises NotFound."""
        direct = self.vms / uuid
        if direct.is_dir():
            return direct
        for folder in self._in_failed(uuid):
            return folder
        if direct.is_dir():  # moved back during the search
            return direct
        raise NotFound(f"There is no VM {uuid} on this worker. `vmachines.list` shows those that are.")

    def _in_failed(self, uuid: str) -> Iterator[Path]:
        """Yield the folders of a VM in failed_to_save, without those that outlived a destroyed VM."""
        for entry in os.scandir(self.failed):  # not a glob: each uuid would compile a pattern of its own
            if f"-{uuid}-" in entry.name and not entry.name.startswith(".") and Path(entry.path, RECORD_FILE).exists():
                yield Path(entry.path)

    def move_to_failed(self, record: Record, now: datetime) -> Path:
        """Move a VM's folder to failed_to_save, and return the new path. A second call returns the same path.

        Raises OSError, with the folder still in its old place.
        """
        self._remove_duplicate(record.uuid)
        folder = self.find(record.uuid)
        if folder.parent == self.failed:
            return folder
        target = self.failed / f"{record.name}-{record.uuid}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        return move_folder.move(folder, target, record.uuid, RECORD_FILE)

    def restore_from_failed(self, uuid: str) -> Path:
        """Move a folder from failed_to_save back among the VMs, once its disks are saved."""
        self._remove_duplicate(uuid)
        folder = self.find(uuid)
        return folder if folder.parent != self.failed else move_folder.move(folder, self.vms / uuid, uuid, RECORD_FILE)

    def _remove_duplicate(self, uuid: str) -> None:
        """Remove the copy that an interrupted move between filesystems left in failed_to_save."""
        shutil.rmtree(move_folder.part(self.failed, uuid), ignore_errors=True)
        if (self.vms / uuid).is_dir():
            for duplicate in self._in_failed(uuid):
                shutil.rmtree(duplicate)

    def remove(self, uuid: str) -> None:
        """Remove a VM's folder. One in failed_to_save stays, and only its record gets another name."""
        self._remove_duplicate(uuid)
        with suppress(NotFound):
            folder = self.find(uuid)
            if folder.parent == self.failed:
                with locks.locked_folder(folder):
                    (folder / RECORD_FILE).replace(folder / DESTROYED_RECORD_FILE)
                atomic_files.sync_folder(folder)
                return
            # Renamed first: a reader never sees half a folder.
            gone = folder.with_name(f".gone-{uuid}")
            shutil.rmtree(gone, ignore_errors=True)
            with locks.locked_folder(folder):  # and a writer has written its record, or finds none
                folder.rename(gone)
            atomic_files.sync_folder(self.vms)
            shutil.rmtree(gone, ignore_errors=True)

    def is_being_removed(self, uuid: str) -> bool:
        """Return whether a part of a removed folder is left."""
        return (self.vms / f".gone-{uuid}").exists()

    def of_destroyed(self) -> Iterator[Path]:
        """Yield the folders in failed_to_save whose VMs were destroyed."""
        with suppress(FileNotFoundError):
            yield from (folder for folder in sorted(self.failed.iterdir()) if (folder / DESTROYED_RECORD_FILE).exists())

    def sweep(self) -> None:
        """Remove folders that a crash left half made or half removed. No other folders have these names."""
        with suppress(FileNotFoundError):
            for folder in (*self.vms.glob(".gone-*"), *self.failed.glob(".gone-*")):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in self.vms.glob(".new-*"):
                if time.time() - folder.stat().st_mtime > _HALF_MADE_S:
                    shutil.rmtree(folder, ignore_errors=True)
