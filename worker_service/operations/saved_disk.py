"""Where a saved disk of a VM lies, and its bytes: at its target, or flattened in failed_to_save."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

from worker_service.core.errors import BadRequest, NotFound, Refused, SalternError
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record
from worker_service.transfer import registry
from worker_service.transfer.uri import parse

_CHUNK: Final = 1 << 20


class SavedDisk(NamedTuple):
    """A saved disk as a file: its size in bytes, its digest, and a function that reads it from an offset on."""

    size: int
    sha256: str
    resumable: bool
    read: Callable[[int], Iterator[bytes]]


_BUSY: Final = "{name!r} is being saved. Try again when it is halted."
_UP: Final = "{name!r} is on: its disk {disk} is saved when it halts. Shut it down first: saltern shutdown {name}."
_KEPT: Final = (
    "The disk {disk} of {name!r} is kept on its worker and not saved. Save it first: saltern modify {name} "
    "--{disk}-save-to URI, and then saltern shutdown {name}."
)
_NONE: Final = "{name!r} has no saved disk {disk}: it has not run, or its disk was discarded when it halted."
WHY_NOT: Final[Mapping[Phase, str]] = {
    Phase.FETCHING: _UP,
    Phase.BUILDING: _UP,
    Phase.BOOTING: _UP,
    Phase.UP: _UP,
    Phase.FLATTENING: _BUSY,
    Phase.SAVING: _BUSY,
    Phase.CLEANING: _BUSY,
    Phase.DONE: _NONE,
    Phase.KEPT: _KEPT,
    Phase.START_FAILED: _NONE,
    Phase.SAVE_FAILED: "The disk {disk} of {name!r} could not be flattened, so it is no single file yet. Mend the "
    "cause that `saltern show {name}` names, and then: saltern save-retry {name}.",
    Phase.DESTROYING: "{name!r} is being destroyed.",
}
"""Why there is no saved disk to download, by the position of the VM in its life."""


def find(worker: WorkerContext, record: Record, disk: str) -> SavedDisk:
    """Return a saved disk of a VM.

    Raises BadRequest for a disk that the VM does not have, Refused if it is not saved or somebody has replaced the
    saved file, and the errors of its place.
    """
    if disk not in record.disk_names:
        raise BadRequest(f"{record.name!r} has no disk {disk!r}. It has {', '.join(record.disk_names)}.")
    facts = record.disks.get(disk, Disk())
    settled = record.phase in (Phase.DONE, Phase.KEPT, Phase.SAVE_FAILED, Phase.START_FAILED)
    if settled and facts.saved_to:
        return _at_target(worker, record, facts)
    if record.phase is Phase.SAVE_FAILED and facts.flat_sha256:
        with suppress(OSError, NotFound):
            return _flattened(worker.store.folder(record.uuid) / facts.flat_name(disk), facts.flat_sha256)
    kept = record.phase is Phase.DONE and record.save_to(disk) is None and facts.virtual_size
    raise Refused((_KEPT if kept else WHY_NOT[record.phase]).format(name=record.name, disk=disk))


def _at_target(worker: WorkerContext, record: Record, facts: Disk) -> SavedDisk:
    uri = parse(str(facts.saved_to))
    size, sha256 = facts.saved_size or facts.flat_size, facts.saved_sha256 or facts.flat_sha256
    try:
        source = registry.source(uri, worker.policy_of(record.owner))
        source.check(uri)
        head = source.head(uri)
    except SalternError as err:
        text = f"{err} The disk lies at {uri}, and its worker cannot read it there."
        raise Refused(text, code=err.code) from err
    if size is None or sha256 is None or head.size not in (None, size):
        raise Refused(f"The file at {uri} is not the disk that was saved there: somebody has replaced it.")
    return SavedDisk(size, sha256, head.resumable, lambda offset: source.read(uri, offset, head))


def _flattened(path: Path, sha256: str) -> SavedDisk:
    """Return a file of failed_to_save. Raises OSError."""
    size = path.lstat().st_size

    def read(offset: int) -> Iterator[bytes]:
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC), "rb", buffering=0) as file:
            file.seek(offset)
            while chunk := file.read(_CHUNK):
                yield chunk

    return SavedDisk(size, sha256, resumable=True, read=read)
