"""The records on disk: durable, readable with `ls`, safe with many processes at once.

vms/<uuid>/record.json     changed only under a flock of the folder itself
vms/<uuid>/lock            held by the helper that works on the VM: free with work pending means an orphan
vms/<uuid>/progress.json   how far the step is; not durable, nobody's truth
names/<name>               symbolic link to the uuid: made exclusively, so a name is taken once
tombstones/<uuid>          generation of a VM that was destroyed here: late commands for it are refused
failed_to_save/<name>-<uuid>-<time>/   VM folders whose disks could not be saved; never deleted by the program. Once the
                           VM is destroyed, its record there is record.forgotten.json
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import msgspec

from worker_service.contract import Code, Progress
from worker_service.core.errors import NotFound, Refused
from worker_service.core.failpoints import failpoint
from worker_service.fs import atomic_files, locks, move_folder
from worker_service.fs.space_reserve import Reserve
from worker_service.state.record import Record

_RECORD: Final = "record.json"
_FORGOTTEN: Final = "record.forgotten.json"
_TOMBSTONES_LISTED_S: Final = 7 * 86_400
_HALF_MADE_S: Final = 60.0
_CREATION_S: Final = 2.0
"""A name whose record does not appear within this time was left behind by a crash."""

_SETTLED_NS: Final = 100_000_000
"""A file older than this will not be followed by another one with the same times."""

_Stamp = tuple[int, int, int]


class RecordStore:
    """All records under one data root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.vms = root / "vms"
        self.names = root / "names"
        self.tombstone_folder = root / "tombstones"
        self.failed = root / "failed_to_save"
        self.slots = root / "slots"
        self.reserve = Reserve(root / "reserve")
        self._known: dict[str, tuple[_Stamp, Record]] = {}

    def prepare(self) -> None:
        """Make the folders. QEMU runs as another user and must be able to pass through, not to look around."""
        self.root.mkdir(parents=True, exist_ok=True, mode=0o711)
        for folder in (self.vms, self.failed):
            folder.mkdir(exist_ok=True, mode=0o711)
        for folder in (self.names, self.tombstone_folder, self.slots):
            folder.mkdir(exist_ok=True, mode=0o700)
        self.reserve.prepare()

    # Finding

    def folder(self, uuid: str) -> Path:
        """The folder of a VM, wherever it is now; raises NotFound."""
        direct = self.vms / uuid
        if direct.is_dir():
            return direct
        for aside in self._failed_folders(uuid):
            return aside
        if direct.is_dir():  # brought back while that place was looked through
            return direct
        raise NotFound(f"There is no VM {uuid} on this worker. `vmachines.list` shows those that are.")

    def _failed_folders(self, uuid: str) -> Iterator[Path]:
        """The folder of a VM in failed_to_save; of one that was destroyed it is the VM's no longer."""
        for moved in os.scandir(self.failed):  # not a glob: each uuid would compile a pattern of its own
            if f"-{uuid}-" in moved.name and not moved.name.startswith(".") and Path(moved.path, _RECORD).exists():
                yield Path(moved.path)

    def read(self, uuid: str) -> Record:
        """The record of a VM; raises NotFound."""
        while True:
            folder = self.folder(uuid)
            try:
                return self._load(f"{folder}/{_RECORD}")
            except NotFound:
                if folder == self.folder(uuid):  # not moved meanwhile
                    raise

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
        seen: dict[str, tuple[_Stamp, Record]] = {}
        here: set[str] = set()
        for base in (self.vms, self.failed, self.vms):  # once more: what is brought back meanwhile is in neither
            with suppress(FileNotFoundError):
                names = {entry.name for entry in os.scandir(base) if not entry.name.startswith(".")}
                for name in sorted(names - here):
                    path = f"{base}/{name}/{_RECORD}"
                    with suppress(NotFound):
                        record = self._load(path)
                        if path in self._known:
                            seen[path] = self._known[path]
                        if record.uuid not in here:
                            here.add(record.uuid)
                            yield record
        self._known = seen

    def destroyed_unsaved(self) -> Iterator[tuple[Path, Record]]:
        """The folders in failed_to_save whose VMs were destroyed, with the last record of each."""
        with suppress(FileNotFoundError):
            for folder in sorted(self.failed.iterdir()):
                with suppress(NotFound, msgspec.MsgspecError):
                    yield folder, self._load(f"{folder}/{_FORGOTTEN}")

    def _load(self, path: str) -> Record:
        """A record by its path; parsed once as long as the file stays the same one. Raises NotFound."""
        try:
            stamp = _stamp(path)
            known = self._known.get(path)
            if known is not None and known[0] == stamp:
                return known[1]
            record = msgspec.json.decode(Path(path).read_bytes(), type=Record)
        except (FileNotFoundError, NotADirectoryError):
            raise NotFound(f"There is no record {path}.") from None
        # Times are coarse: of a file that was just written, another one with the same stamp may follow.
        if time.time_ns() - stamp[1] > _SETTLED_NS and _stamp_or_none(path) == stamp:
            self._known[path] = (stamp, record)
        return record

    # Changing

    def admission(self) -> AbstractContextManager[bool]:
        """Held while it is asked whether a VM fits, until it counts: two must not both get the last of the memory."""
        return locks.locked(self.root / "admission.lock")

    def create(self, record: Record, admit: Callable[[], None] = lambda: None) -> Record | None:
        """Make a new VM durable. Returns None when it is made, else the record that has the name or uuid already.

        One at a time is asked whether it is admitted.
        The disk is waited for before and after that, so many requests wait for it together.

        Args:
            record: the new record.
            admit: raises what `create` is to raise where there is no room for this VM.
        """
        fresh = Path(tempfile.mkdtemp(prefix=".new-", dir=self.vms))
        try:
            fresh.chmod(0o711)
            atomic_files.write(fresh / _RECORD, msgspec.json.encode(record))
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
        while True:
            folder = self.folder(uuid)
            with locks.locked(folder):
                path = folder / _RECORD
                try:
                    raw = path.read_bytes()
                except FileNotFoundError:
                    if folder != self.folder(uuid):  # moved or destroyed while we waited
                        continue
                    raise
                old = msgspec.json.decode(raw, type=Record)
                new = change(old)
                if new is not old:
                    self.reserve.write(path, msgspec.json.encode(_with_unknown(new, msgspec.json.decode(raw))))
                return new

    def work_lock(self, uuid: str) -> AbstractContextManager[bool]:
        """Try to become the one that works on a VM; yields whether that was granted."""
        return locks.locked(self.folder(uuid) / "lock", wait=False)

    def lock_for_helper(self, uuid: str) -> int | None:
        """The work lock as a descriptor to hand to a helper; None where one is at work, or nothing is there."""
        with suppress(NotFound, FileNotFoundError):  # gone, or just moved by who is at work
            return locks.lock(self.folder(uuid) / "lock", wait=False)
        return None

    # Endings

    def write_tombstone(self, uuid: str, generation: int) -> None:
        """Write the tombstone of a VM, before anything of it is taken away."""
        self.reserve.write(self.tombstone_folder / uuid, str(generation).encode())

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
            atomic_files.sync_folder(self.names)
        self._remove_duplicate(record.uuid)
        with suppress(NotFound):
            folder = self.folder(record.uuid)
            if folder.parent == self.failed:
                (folder / _RECORD).replace(folder / _FORGOTTEN)
                atomic_files.sync_folder(folder)
                return
            # Renamed first: a reader never sees half a folder.
            gone = folder.with_name(f".gone-{record.uuid}")
            shutil.rmtree(gone, ignore_errors=True)
            folder.rename(gone)
            atomic_files.sync_folder(self.vms)
            shutil.rmtree(gone, ignore_errors=True)

    def is_gone(self, uuid: str) -> bool:
        """Whether nothing of a VM is left, not even a half that is just being removed."""
        try:
            self.read(uuid)
        except NotFound:
            return not (self.vms / f".gone-{uuid}").exists()
        return False

    def sweep(self) -> None:
        """Remove what a crash left half made or half removed; nothing else has these names. Fill the reserve."""
        self.reserve.fill()
        with suppress(FileNotFoundError):
            for folder in (*self.vms.glob(".gone-*"), *self.failed.glob(".gone-*")):
                shutil.rmtree(folder, ignore_errors=True)
            for folder in self.vms.glob(".new-*"):
                if time.time() - folder.stat().st_mtime > _HALF_MADE_S:
                    shutil.rmtree(folder, ignore_errors=True)

    def move_to_failed(self, record: Record, now: datetime) -> Path:
        """Move a VM's folder to failed_to_save, where the program never deletes; returns the new path.

        Raises OSError where that cannot be; all is as it was then.
        """
        self._remove_duplicate(record.uuid)
        folder = self.folder(record.uuid)
        if folder.parent == self.failed:
            return folder
        aside = self.failed / f"{record.name}-{record.uuid}-{now.astimezone(UTC):%Y%m%dT%H%M%SZ}"
        return move_folder.move(folder, aside, record.uuid, _RECORD)

    def restore_from_failed(self, uuid: str) -> Path:
        """Move a folder from failed_to_save back among the VMs, once its disks are saved after all."""
        self._remove_duplicate(uuid)
        folder = self.folder(uuid)
        return folder if folder.parent != self.failed else move_folder.move(folder, self.vms / uuid, uuid, _RECORD)

    def _remove_duplicate(self, uuid: str) -> None:
        """Remove what a move between filesystems that was cut off left in failed_to_save."""
        shutil.rmtree(move_folder.part(self.failed, uuid), ignore_errors=True)
        if (self.vms / uuid).is_dir():
            for double in self._failed_folders(uuid):
                shutil.rmtree(double)

    # Progress

    def report(self, uuid: str, progress: Progress | None) -> None:
        """Say how far the step is; lost by a crash, or on a full disk, without harm."""
        with suppress(NotFound, OSError):
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


def _with_unknown(value: object, raw: object) -> Any:
    """A value as plain data, with what a newer version wrote in its place and this one does not know."""
    if isinstance(value, dict) and isinstance(raw, dict):
        return {key: _with_unknown(part, raw.get(key)) for key, part in value.items()}
    plain = msgspec.to_builtins(value)
    if not isinstance(value, msgspec.Struct) or not isinstance(raw, dict):
        return plain
    names = dict(zip(value.__struct_encode_fields__, value.__struct_fields__, strict=True))
    unknown = {key: part for key, part in raw.items() if key not in names}
    return {**unknown, **{key: _with_unknown(getattr(value, names[key]), raw.get(key)) for key in plain}}


def _stamp(path: str) -> _Stamp:
    found = os.stat(path)  # noqa: PTH116 - once for each VM at each look: a Path would cost more than the question
    return found.st_ino, found.st_mtime_ns, found.st_size


def _stamp_or_none(path: str) -> _Stamp | None:
    try:
        return _stamp(path)
    except OSError:
        return None
