"""The records on disk: durable, readable with `ls`, safe with many processes at once.

vms/<uuid>/record.json     changed only under a flock of the folder itself
vms/<uuid>/lock            held by the helper that works on the VM: free with work pending means an orphan
vms/<uuid>/progress.json   how far the step is; not durable, nobody's truth
names/<name>               symbolic link to the uuid: made exclusively, so a name is taken once
tombstones/<uuid>          generation of a VM that was destroyed here: late commands for it are refused
failed_to_save/<name>-<uuid>-<time>/   VM folders whose disks could not be saved; never deleted by the program
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service import durable
from worker_service.checkpoints import checkpoint
from worker_service.contract import Code, Progress
from worker_service.errors import NotFound, Refused
from worker_service.record import Record

_FIELDS: Final = frozenset(Record.__struct_fields__)
_TOMBSTONES_LISTED_S: Final = 7 * 86_400
_HALF_MADE_S: Final = 60.0
_CREATION_S: Final = 2.0
"""A name whose record does not appear within this time was left behind by a crash."""


class Store:
    """All records under one data root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vms = root / "vms"
        self.names = root / "names"
        self.tombstone_folder = root / "tombstones"
        self.failed = root / "failed_to_save"
        self.seats = root / "seats"

    def prepare(self) -> None:
        """Make the folders. QEMU runs as another user and must be able to pass through, not to look around."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        for folder in (self.vms, self.failed):
            folder.mkdir(exist_ok=True, mode=0o711)
        for folder in (self.names, self.tombstone_folder, self.seats):
            folder.mkdir(exist_ok=True, mode=0o700)

    # Finding

    def folder(self, uuid: str) -> Path:
        """The folder of a VM, wherever it is now; raises NotFound."""
        direct = self.vms / uuid
        if direct.is_dir():
            return direct
        for moved in self.failed.glob(f"*-{uuid}-*/record.json"):
            return moved.parent
        raise NotFound(f"There is no VM {uuid} on this worker. `vmachines.list` shows those that are.")

    def read(self, uuid: str) -> Record:
        """The record of a VM; raises NotFound."""
        return self._load(self.folder(uuid))

    def find(self, uuid: str | None = None, name: str | None = None) -> Record:
        """The record by uuid or by name; the uuid wins where both are given. Raises NotFound."""
        if uuid:
            return self.read(uuid)
        holder = self._holder(name or "")
        if holder is None:
            raise NotFound(f"There is no VM named {name!r} on this worker. `vmachines.list` shows those that are.")
        return self.read(holder)

    def all(self) -> Iterator[Record]:
        """Every record; folders that vanish meanwhile, and halves left by a crash, are passed over."""
        for base in (self.vms, self.failed):
            with suppress(FileNotFoundError):
                for entry in sorted(base.iterdir()):
                    if not entry.name.startswith("."):
                        with suppress(NotFound):
                            yield self._load(entry)

    @staticmethod
    def _load(folder: Path) -> Record:
        try:
            return msgspec.json.decode((folder / "record.json").read_bytes(), type=Record)
        except FileNotFoundError:
            raise NotFound(f"There is no record in {folder}.") from None

    # Changing

    def create(self, record: Record) -> Record | None:
        """Make a new VM durable. Returns None when it is made, else the record that has the name or uuid already."""
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.vms))
        try:
            fresh.chmod(0o711)
            durable.write(fresh / "record.json", msgspec.json.encode(record))
            if (holder := self._claim_name(record)) is not None:
                return holder
            checkpoint("create.named")
            try:
                fresh.rename(self.vms / record.uuid)
            except OSError as err:
                (self.names / record.name).unlink(missing_ok=True)
                if err.errno in (errno.ENOTEMPTY, errno.EEXIST):  # the uuid belongs to a VM of another name
                    return self.read(record.uuid)
                raise
            durable.sync_folder(self.vms)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
        return None

    def _claim_name(self, record: Record) -> Record | None:
        while True:
            try:
                (self.names / record.name).symlink_to(record.uuid)
            except FileExistsError:
                if (holder := self._wait_for_holder(record.name)) is not None:
                    return holder
            else:
                durable.sync_folder(self.names)
                return None

    def _holder(self, name: str) -> str | None:
        try:
            return str((self.names / name).readlink()) if name else None
        except OSError:
            return None

    def _wait_for_holder(self, name: str) -> Record | None:
        """The record behind a taken name. Its maker names it first and shows it a moment later."""
        deadline = time.monotonic() + _CREATION_S
        while (holder := self._holder(name)) is not None:
            with suppress(NotFound):
                return self.read(holder)
            if time.monotonic() > deadline:
                (self.names / name).unlink(missing_ok=True)
            time.sleep(0.01)
        return None

    def update(self, uuid: str, change: Callable[[Record], Record]) -> Record:
        """Change a record durably: read, change, write under its lock. `change` is quick; it may raise."""
        folder = self.folder(uuid)
        with durable.locked(folder):
            path = folder / "record.json"
            try:
                raw = path.read_bytes()
            except FileNotFoundError:  # moved or destroyed while we waited
                folder = self.folder(uuid)
                path = folder / "record.json"
                raw = path.read_bytes()
            old = msgspec.json.decode(raw, type=Record)
            new = change(old)
            if new is not old:
                # What a newer version wrote and this one does not know stays.
                known: dict[str, Any] = {k: v for k, v in msgspec.json.decode(raw).items() if k not in _FIELDS}
                durable.write(path, msgspec.json.encode({**known, **msgspec.to_builtins(new)}))
            return new

    def work_lock(self, uuid: str) -> AbstractContextManager[bool]:
        """Try to become the one that works on a VM; yields whether that was granted."""
        return durable.locked(self.folder(uuid) / "lock", wait=False)

    def lock_for_helper(self, uuid: str) -> int | None:
        """The work lock as a descriptor to hand to a helper; None where one is at work."""
        return durable.lock(self.folder(uuid) / "lock", wait=False)

    # Endings

    def bury(self, uuid: str, generation: int) -> None:
        """Write the tombstone of a VM, before anything of it is taken away."""
        durable.write(self.tombstone_folder / uuid, str(generation).encode())

    def tombstone(self, uuid: str) -> int | None:
        """The generation at which a VM was destroyed here, or None."""
        try:
            return int((self.tombstone_folder / uuid).read_bytes())
        except (FileNotFoundError, ValueError):
            return None

    def refuse_if_destroyed(self, uuid: str, generation: int | None) -> None:
        """Raise Refused where a tombstone says that this command comes too late."""
        grave = self.tombstone(uuid)
        if grave is not None and (generation is None or generation <= grave):
            raise Refused(
                f"VM {uuid} was destroyed here at generation {grave}, and this command is not newer. "
                "Start it under a new uuid, or with a higher generation.",
                code=Code.DESTROYED,
            )

    def tombstones(self) -> dict[str, int]:
        """The VMs destroyed here in the last days: uuid -> generation."""
        recent = time.time() - _TOMBSTONES_LISTED_S
        with suppress(FileNotFoundError):
            return {
                entry.name: generation
                for entry in self.tombstone_folder.iterdir()
                if not entry.name.startswith(".")
                and entry.stat().st_mtime > recent
                and (generation := self.tombstone(entry.name)) is not None
            }
        return {}

    def remove(self, record: Record) -> None:
        """Take a VM away: its name, then its folder. A folder in failed_to_save stays, no longer as a VM's."""
        if self._holder(record.name) == record.uuid:
            (self.names / record.name).unlink(missing_ok=True)
            durable.sync_folder(self.names)
        with suppress(NotFound):
            folder = self.folder(record.uuid)
            if folder.parent == self.failed:
                (folder / "record.json").replace(folder / "record.forgotten.json")
                durable.sync_folder(folder)
                return
            # Renamed first: a reader never sees half a folder.
            gone = folder.with_name(f".gone-{record.uuid}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            durable.sync_folder(self.vms)
            shutil.rmtree(gone, ignore_errors=True)

    def is_gone(self, uuid: str) -> bool:
        """Whether nothing of a VM is left, not even a half that is just being removed."""
        try:
            self.read(uuid)
        except NotFound:
            return not (self.vms / f".gone-{uuid}").exists()
        return False

    def sweep(self) -> None:
        """Remove what a crash left half made or half removed; nothing else has these names."""
        with suppress(FileNotFoundError):
            for folder in self.vms.glob(".gone-*"):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in self.vms.glob(".new-*"):
                if time.time() - folder.stat().st_mtime > _HALF_MADE_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def set_aside(self, record: Record, now: datetime) -> Path:
        """Move a VM's folder to failed_to_save, where the program never deletes; returns the new path."""
        folder = self.folder(record.uuid)
        if folder.parent == self.failed:
            return folder
        aside = self.failed / f"{record.name}-{record.uuid}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        durable.rename_new(folder, aside)
        durable.sync_folder(self.failed)
        durable.sync_folder(self.vms)
        return aside

    def bring_back(self, uuid: str) -> Path:
        """Move a folder from failed_to_save back among the VMs, once its disks are saved after all."""
        folder = self.folder(uuid)
        if folder.parent != self.failed:
            return folder
        folder.rename(self.vms / uuid)
        durable.sync_folder(self.vms)
        durable.sync_folder(self.failed)
        return self.vms / uuid

    # Progress

    def report(self, uuid: str, progress: Progress | None) -> None:
        """Say how far the step is; lost by a crash without harm."""
        with suppress(NotFound):
            path = self.folder(uuid) / "progress.json"
            if progress is None:
                path.unlink(missing_ok=True)
                return
            part = path.with_name(".progress.part")
            part.write_bytes(msgspec.json.encode(progress))
            part.replace(path)

    def progress(self, uuid: str) -> Progress | None:
        """What the helper last said of its step, or None."""
        try:
            return msgspec.json.decode((self.folder(uuid) / "progress.json").read_bytes(), type=Progress)
        except (FileNotFoundError, NotFound, msgspec.MsgspecError):
            return None
