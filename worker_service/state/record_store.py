"""The records on disk: durable, readable with `ls`, safe with many processes at once.

vms/<uuid>/record.json     changed only under a flock of the folder itself. Who moves or removes the folder holds it too
vms/<uuid>/lock            held by the VM's helper; if it is free and work is pending, the helper was lost
vms/<uuid>/progress.json   progress of the step; not durable, and read only to be shown
names/<name>               symbolic link to the uuid, made exclusively, so that each name has one VM
tombstones/<uuid>          see `tombstones`
failed_to_save/<name>-<uuid>-<time>/   folders of VMs whose disks could not be saved; the program never deletes them.
                           The record of a destroyed VM there is record.forgotten.json
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import Progress
from worker_service.core.errors import NotFound
from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files, locks, private
from worker_service.fs.space_reserve import Reserve
from worker_service.state.record import Record
from worker_service.state.tombstones import Tombstones
from worker_service.state.vm_folders import DESTROYED_RECORD_FILE, RECORD_FILE, VMFolders

_CREATION_S: Final = 2.0
"""Time within which a record must follow its name. A name without one was left by a crash."""

_SETTLED_NS: Final = 100_000_000
"""Age from which no other file with the same times can follow a file."""

_Stamp = tuple[int, int, int]


class RecordStore:
    """All records below one data root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.folders = VMFolders(root)
        self.vms, self.failed = self.folders.vms, self.folders.failed
        self.names = root / "names"
        self.slots = root / "slots"
        self.reserve = Reserve(root / "reserve")
        self.tombstones = Tombstones(root / "tombstones", self.reserve)
        self._cache: dict[str, tuple[_Stamp, Record]] = {}

    def prepare(self, gid: int = -1) -> None:
        """Create the folders, and close them to others than QEMU's group. -1 stands for the group of this process."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        private.close(self.root, gid)
        for folder in (self.vms, self.failed):
            private.make_folder(folder, gid)
        for folder in (self.names, self.tombstones.folder, self.slots):
            folder.mkdir(exist_ok=True, mode=0o700)
        self.reserve.prepare()

    # Finding

    def folder(self, uuid: str) -> Path:
        """Return the folder of a VM, wherever it is now; raises NotFound."""
        return self.folders.find(uuid)

    def read(self, uuid: str) -> Record:
        """Return the record of a VM; raises NotFound."""
        while True:
            folder = self.folder(uuid)
            try:
                return self._load(f"{folder}/{RECORD_FILE}")
            except NotFound:
                if folder == self.folder(uuid):  # it was not moved in the meantime
                    raise

    def find(self, uuid: str | None = None, name: str | None = None) -> Record:
        """Return the record by uuid, or by name if no uuid is given. Raises NotFound."""
        if uuid:
            return self.read(uuid)
        holder = self._holder(name or "")
        if holder is None:
            raise NotFound(f"There is no VM named {name!r} on this worker. `vmachines.list` shows those that are.")
        return self.read(holder)

    def all(self) -> Iterator[Record]:
        """Yield every record, without folders that vanish during the search or that a crash left half made."""
        cache: dict[str, tuple[_Stamp, Record]] = {}
        yielded: set[str] = set()
        for base in (self.vms, self.failed, self.vms):  # twice: a folder may move back during the search
            with suppress(FileNotFoundError):
                names = {entry.name for entry in os.scandir(base) if not entry.name.startswith(".")}
                for name in sorted(names - yielded):
                    path = f"{base}/{name}/{RECORD_FILE}"
                    with suppress(NotFound):
                        record = self._load(path)
                        if path in self._cache:
                            cache[path] = self._cache[path]
                        if record.uuid not in yielded:
                            yielded.add(record.uuid)
                            yield record
        self._cache = cache

    def destroyed_unsaved(self) -> Iterator[tuple[Path, Record]]:
        """Yield the folders in failed_to_save whose VMs were destroyed, with the last record of each."""
        for folder in self.folders.of_destroyed():
            with suppress(NotFound, msgspec.MsgspecError):
                yield folder, self._load(f"{folder}/{DESTROYED_RECORD_FILE}")

    def _load(self, path: str) -> Record:
        """Return the record in a file, parsed once as long as the file stays the same. Raises NotFound."""
        try:
            stamp = _stamp(path)
            cached = self._cache.get(path)
            if cached is not None and cached[0] == stamp:
                return cached[1]
            record = msgspec.json.decode(Path(path).read_bytes(), type=Record)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"There is no record {path}.") from None
        # Times are coarse: another file with the same stamp may follow one that was just written.
        if time.time_ns() - stamp[1] > _SETTLED_NS and _stamp_or_none(path) == stamp:
            self._cache[path] = (stamp, record)
        return record

    # Changing

    def admission(self) -> AbstractContextManager[bool]:
        """Return the lock under which a VM is admitted: two must not both get the last of the memory."""
        return locks.locked(self.root / "admission.lock")

    def create(self, record: Record, admit: Callable[[], None] = lambda: None) -> Record | None:
        """Make a new VM durable. Return None, or the record that has the name or the uuid already.

        VMs are admitted one at a time. Their files are synced outside that lock, so that many requests share the wait.

        Args:
            record: the new record.
            admit: raises an error if the VM does not fit; `create` then raises the same.
        """
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.vms))
        try:
            private.set_like_parent(fresh, private.FOLDER)
            atomic_files.write(fresh / RECORD_FILE, msgspec.json.encode(record))
            with self.admission():
                if (holder := self._claim_name(record)) is not None:
                    return holder
                try:
                    failpoint("create.named")
                    admit()
                    fresh.rename(self.vms / record.uuid)
                except BaseException as err:
                    (self.names / record.name).unlink(missing_ok=True)
                    if isinstance(err, OSError) and err.errno in (errno.ENOTEMPTY, errno.EEXIST):
                        return self.read(record.uuid)  # the uuid belongs to a VM of another name
                    raise
            atomic_files.sync_folder(self.names)
            atomic_files.sync_folder(self.vms)
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
                return None

    def _holder(self, name: str) -> str | None:
        try:
            return str((self.names / name).readlink()) if name else None
        except OSError:
            return None

    def _wait_for_holder(self, name: str) -> Record | None:
        """Return the record behind a taken name. `create` makes the name first and the record a moment later."""
        deadline = time.monotonic() + _CREATION_S
        while (holder := self._holder(name)) is not None:
            with suppress(NotFound):
                return self.read(holder)
            if time.monotonic() > deadline:
                (self.names / name).unlink(missing_ok=True)
            time.sleep(0.01)
        return None

    def update(
        self,
        uuid: str,
        change: Callable[[Record], Record],
        *,
        before_write: Callable[[Record, Record], None] = lambda _before, _after: None,
    ) -> Record:
        """Change a record durably under its lock, and return it. Raises NotFound.

        Args:
            uuid: the VM.
            change: a quick function of the current record.
            before_write: is called with the old and the new record before the new one is written. It makes durable
                what must come first. An error of either function leaves the record unchanged.
        """
        while True:
            folder = self.folder(uuid)
            try:
                with locks.locked_folder(folder):
                    return self._change(folder / RECORD_FILE, change, before_write)
            except FileNotFoundError:
                if folder == self.folder(uuid):  # else it was moved before this held its lock
                    raise

    def _change(
        self, path: Path, change: Callable[[Record], Record], before_write: Callable[[Record, Record], None]
    ) -> Record:
        plain = msgspec.json.decode(path.read_bytes())
        before = msgspec.convert(plain, Record)
        after = change(before)
        if after is not before:
            before_write(before, after)
            self.reserve.write(path, msgspec.json.encode(_with_unknown(after, plain)))
        return after

    def work_lock(self, uuid: str) -> AbstractContextManager[bool]:
        """Return the VM's work lock, tried once. It yields whether it was granted."""
        return locks.locked(self.folder(uuid) / "lock", wait=False)

    def lock_for_helper(self, uuid: str) -> int | None:
        """Return the work lock as a descriptor for a helper, or None if it is taken or the VM is gone."""
        with suppress(NotFound, FileNotFoundError):  # gone, or just moved by its helper
            return locks.lock(self.folder(uuid) / "lock", wait=False)
        return None

    # Removing

    def remove(self, record: Record) -> None:
        """Remove a VM: its name, then its folder. A folder in failed_to_save stays, as no VM's."""
        if self._holder(record.name) == record.uuid:
            (self.names / record.name).unlink(missing_ok=True)
            atomic_files.sync_folder(self.names)
        self.folders.remove(record.uuid)

    def is_gone(self, uuid: str) -> bool:
        """Return whether no part of a VM is left, neither a record nor a folder that is being removed."""
        try:
            self.read(uuid)
        except NotFound:
            return not self.folders.is_being_removed(uuid)
        return False

    def sweep(self) -> None:
        """Remove what a crash left half made or half removed, and fill the reserve."""
        self.reserve.fill()
        self.folders.sweep()

    # Progress

    def report(self, uuid: str, progress: Progress | None) -> None:
        """Show the progress of a step. A crash or a full disk loses it without harm."""
        with suppress(NotFound, OSError):
            path = self.folder(uuid) / "progress.json"
            if progress is None:
                path.unlink(missing_ok=True)
                return
            part = path.with_name(".progress.part")
            part.write_bytes(msgspec.json.encode(progress))
            part.replace(path)

    def progress(self, uuid: str) -> Progress | None:
        """Return the progress that the helper reported last, or None."""
        try:
            return msgspec.json.decode((self.folder(uuid) / "progress.json").read_bytes(), type=Progress)
        except (FileNotFoundError, NotFound, msgspec.MsgspecError):
            return None


def _with_unknown(value: object, raw: object) -> Any:
    """Return a value as plain data, with the fields that a newer version wrote and this one does not know."""
    if isinstance(value, dict) and isinstance(raw, dict):
        return {key: _with_unknown(part, raw.get(key)) for key, part in value.items()}
    plain = msgspec.to_builtins(value)
    if not isinstance(value, msgspec.Struct) or not isinstance(raw, dict):
        return plain
    names = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
    unknown = {key: part for key, part in raw.items() if key not in names}
    return {**unknown, **{key: _with_unknown(getattr(value, names[key]), raw.get(key)) for key in plain}}


def _stamp(path: str) -> _Stamp:
    found = os.stat(path)  # noqa: PTH116 - once for each VM in each pass: a Path would cost more than the call
    return found.st_ino, found.st_mtime_ns, found.st_size


def _stamp_or_none(path: str) -> _Stamp | None:
    try:
        return _stamp(path)
    except OSError:
        return None
