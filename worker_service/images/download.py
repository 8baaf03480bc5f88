"""One fetch under way: from a source, unpacked where it is packed, into a part file that survives a broken connection.

The part has a mark beside it: the validator of what it is a part of. Only under the same strong validator is it gone
on with. What is unpacked on the way cannot be gone on with, since the decoder's memory is lost: its mark is empty.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import IO, Final

import msgspec

from worker_service.contract import Code
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import ImagePolicy
from worker_service.images import compression
from worker_service.transfer.registry import CannotResume, Head, Report, Source
from worker_service.transfer.uri import Uri

_GIB: Final = 1 << 30
_LOOK_EVERY: Final = 4 << 20
"""Bytes written between two looks at the free space."""


class Fetched(msgspec.Struct, frozen=True):
    """Two digests: of what is in the part now, and of the bytes at the URI. They differ where those are packed."""

    content: str
    source: str


class Part:
    """The part file of one URI, with its mark. Its caller holds that URI's lock."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(f"{path.name}-of")

    def exists(self) -> bool:
        """Whether a fetch left something."""
        return self._mark.exists()

    def drop(self) -> None:
        """Remove it; its mark goes last, so that a crash in between is seen."""
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def begin(self, head: Head) -> None:
        """Keep what is there only where the source still has the same, and can go on in the middle."""
        same = head.resumable and self._mark.exists() and self._mark.read_text() == head.validator
        if not same:
            self.begin_anew()
            self._mark.write_text(head.validator or "")

    def begin_anew(self) -> None:
        """Keep nothing of what is there."""
        self.path.unlink(missing_ok=True)

    def end(self, *, keep: bool) -> None:
        """After a fetch that ended in whatever way: `keep` lets the next one go on, if there is anything to go on."""
        if not (keep and self.path.exists() and self._mark.read_text()):
            self.drop()

    def forget_origin(self) -> None:
        """From here on the part is not what the source has, byte by byte."""
        self._mark.write_text("")


class Download:
    """A fetch of one image: from where, under which limits, and who is told of it.

    Args:
        uri: the image.
        reader: the source for its scheme.
        head: what the source says of it now.
        policy: the limits.
        report: told of the bytes from the source; may raise to interrupt.
    """

    def __init__(self, uri: Uri, reader: Source, head: Head, policy: ImagePolicy, report: Report) -> None:
        self._uri = uri
        self._reader = reader
        self._head = head
        self._policy = policy
        self._report = report

    def into(self, part: Part) -> Fetched:
        """Fetch what the part lacks, or all where the source cannot go on. Raises TransferFailed, BadImage, Refused."""
        try:
            return self._rest_into(part)
        except CannotResume:
            part.begin_anew()
            return self._rest_into(part)

    def _rest_into(self, part: Part) -> Fetched:
        source = hashlib.sha256()

        def require_more_room() -> None:
            require_room(part.path.parents[2], self._policy, f"{self._uri} is not all here yet", 0)

        with os.fdopen(os.open(part.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            done = _old_bytes(file, source)
            incoming = self._incoming(done, source)
            first = b"" if done else _beginning(incoming)
            chunks = chain((first,), incoming)
            if not (how := compression.kind(first)):
                _write(file, chunks, require_more_room)
                return Fetched(source.hexdigest(), source.hexdigest())
            part.forget_origin()
            content = hashlib.sha256()
            _write(file, _hashed(compression.unpack(how, chunks, self._limits), content), require_more_room)
            return Fetched(content.hexdigest(), source.hexdigest())

    @property
    def _limits(self) -> compression.UnpackLimits:
        return compression.UnpackLimits(
            output_bytes=self._policy.max_virtual_gib * _GIB,
            ratio=self._policy.max_ratio,
            cpu_s=self._policy.max_unpack_s,
        )

    def _incoming(self, done: int, digest: hashlib._Hash) -> Iterator[bytes]:
        """The bytes of the source from `done` on: counted, digested, reported, and not one too many or too few."""
        limit, size = self._policy.max_download_gib * _GIB, self._head.size
        for chunk in self._reader.read(self._uri, done, self._head) if done != size else ():
            done += len(chunk)
            if done > limit or (size is not None and done > size):
                raise BadImage(
                    f"It sends more bytes than it said, or than are allowed ({limit >> 30} GiB). Check what it is."
                )
            digest.update(chunk)
            yield chunk
            self._report(done, size)
            failpoint("fetch.chunk")
        if size is not None and done != size:
            raise TransferFailed(f"{self._uri} broke off after {done} of {size} bytes. It is tried again from there.")


def check_digest(uri: Uri, found: str) -> None:
    """Raise BadImage where a URI demands other bytes than those that were found."""
    if uri.sha256 and found != uri.sha256:
        raise BadImage(
            f"It has the sha256 {found}, not {uri.sha256} as demanded. Correct the digest, or find out who changed it."
        )


def require_room(root: Path, policy: ImagePolicy, why: str, size: int) -> None:
    """Raise Refused, that begins with `why`, where so many bytes would not leave more than a data root's reserve."""
    free = free_bytes(root) - (policy.reserve_mib << 20)
    if size >= free:
        raise Refused(
            f"{why}, and {max(0, free) >> 20} MiB are free in {root} beside the reserve of {policy.reserve_mib} MiB "
            "(images.reserve_mib). Free space there, or use another worker.",
            code=Code.NO_ROOM,
        )


def free_bytes(folder: Path) -> int:
    """Free space of the filesystem that a folder lies on."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def _old_bytes(file: IO[bytes], digest: hashlib._Hash) -> int:
    """Digest what is there already and stand behind it; returns how much that is."""
    while chunk := file.read(compression.CHUNK):
        digest.update(chunk)
    return file.tell()


def _beginning(chunks: Iterator[bytes]) -> bytes:
    """Enough to tell how it is packed, however small the pieces are that it comes in."""
    first = b""
    for chunk in chunks:
        first += chunk
        if len(first) >= compression.MAGIC_BYTES:
            break
    return first


def _hashed(chunks: Iterator[bytes], digest: hashlib._Hash) -> Iterator[bytes]:
    for chunk in chunks:
        digest.update(chunk)
        yield chunk


def _write(file: IO[bytes], chunks: Iterator[bytes], require_more_room: Callable[[], None]) -> None:
    """Append; zeros become holes, and the reserve stays free whatever the source says of its size."""
    unlooked = _LOOK_EVERY
    try:
        for chunk in chunks:
            if compression.is_zero(chunk):
                file.seek(len(chunk), os.SEEK_CUR)
                continue
            unlooked += len(chunk)
            if unlooked >= _LOOK_EVERY:
                unlooked = 0
                require_more_room()
            file.write(chunk)
    finally:
        # Also where it broke off: a hole at the end is as good as fetched.
        file.truncate(file.tell())
