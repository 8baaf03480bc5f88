"""Fetch an image from a source into a part file that survives a broken connection, and decompress it on the way.

A mark beside the part has the validator of the file that it is a part of. A fetch resumes only if the source still has
the same strong validator. A decompressed part cannot resume, because the decoder's state is lost: its mark is empty.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from pathlib import Path
from typing import IO, Final

import msgspec

from worker_service.contract import Code
from worker_service.core.errors import BadImage, Refused, TransferFailed
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import ImagePolicy
from worker_service.images import compression
from worker_service.transfer import registry
from worker_service.transfer.registry import Report, Visit
from worker_service.transfer.uri import Uri

_GIB: Final = 1 << 30
_CHECK_EVERY: Final = 4 << 20
"""Bytes written between two checks of the free space."""


class Fetched(msgspec.Struct, frozen=True):
    """Digests of the bytes in the part and of those at the URI. They differ if the latter are compressed."""

    content: str
    source: str
    note: str = ""
    """What was left out of the image, as a sentence for people."""


class Part:
    """The part file of one URI, with its mark. The caller holds the lock of that URI."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = path.with_name(f"{path.name}-of")

    def exists(self) -> bool:
        """Return whether an unfinished fetch left a part."""
        return self._mark.exists()

    def drop(self) -> None:
        """Remove the part and then its mark, so that a crash in between is noticed."""
        self.path.unlink(missing_ok=True)
        self._mark.unlink(missing_ok=True)

    def found(self) -> registry.Part | None:
        """Return what an interrupted fetch left, or None if nothing is left that a source may resume."""
        with suppress(FileNotFoundError):
            validator, size = self._mark.read_text(), self.path.stat().st_size
            return registry.Part(size, validator) if validator and size else None
        return None

    def begin(self, visit: Visit) -> None:
        """Keep the part if the source goes on behind it, or has no more than that. Otherwise start again."""
        there, head = self.found(), visit.head
        is_whole = head.resumable and there is not None and there == (head.size, head.validator)
        if not visit.begins and not is_whole:
            self.path.unlink(missing_ok=True)
            self._mark.write_text(head.validator or "")

    def end(self, *, keep: bool) -> None:
        """End a fetch. With `keep`, the next one resumes if there is a part that it can resume."""
        if not (keep and self.path.exists() and self._mark.read_text()):
            self.drop()

    def forget_origin(self) -> None:
        """Note that the part no longer has the source's own bytes."""
        self._mark.write_text("")


class Download:
    """A fetch of one image.

    Args:
        uri: the image.
        visit: the source's answer.
        policy: the limits.
        report: gets the bytes from the source, and may raise to interrupt.
    """

    def __init__(self, uri: Uri, visit: Visit, policy: ImagePolicy, report: Report) -> None:
        self._uri = uri
        self._visit = visit
        self._policy = policy
        self._report = report

    def into(self, part: Part) -> Fetched:
        """Fetch what the part lacks. Raises TransferFailed, BadImage, Refused."""
        part.begin(self._visit)
        source = hashlib.sha256()

        def require_more_room() -> None:
            require_room(part.path.parents[2], self._policy, f"{self._uri} is not all here yet", 0)

        with os.fdopen(os.open(part.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+b") as file:
            done = _old_bytes(file, source)
            incoming = self._incoming(done, source)
            first = b"" if done else _beginning(incoming)
            compression.refuse_archive(first)
            chunks = chain((first,), incoming)
            if not (how := compression.kind(first)):
                _write(file, chunks, require_more_room)
                return Fetched(source.hexdigest(), source.hexdigest())
            part.forget_origin()
            content, notes = hashlib.sha256(), list[str]()
            unpacked = compression.unpack(how, chunks, self._limits, notes.append)
            _write(file, _hashed(unpacked, content), require_more_room)
            return Fetched(content.hexdigest(), source.hexdigest(), " ".join(notes))

    @property
    def _limits(self) -> compression.UnpackLimits:
        return compression.UnpackLimits(
            output_bytes=self._policy.max_virtual_gib * _GIB,
            ratio=self._policy.max_ratio,
            cpu_s=self._policy.max_unpack_s,
        )

    def _incoming(self, done: int, digest: hashlib._Hash) -> Iterator[bytes]:
        """Yield the bytes of the source from `done` on. They are digested and reported, and their number is checked."""
        limit, size = self._policy.max_download_gib * _GIB, self._visit.head.size
        for chunk in self._visit.chunks if done != size else ():
            done += len(chunk)
            if done > limit or (size is not None and done > size):
                raise BadImage(
                    f"It sends more bytes than it announced, or than are allowed ({limit >> 30} GiB). Check the URI."
                )
            digest.update(chunk)
            yield chunk
            self._report(done, size)
            failpoint("fetch.chunk")
        if size is not None and done != size:
            raise TransferFailed(f"{self._uri} broke off after {done} of {size} bytes. The worker resumes from there.")


def check_digest(uri: Uri, found: str) -> None:
    """Raise BadImage if the URI names another digest than the one found."""
    if uri.sha256 and found != uri.sha256:
        raise BadImage(
            f"It has the sha256 {found}, not {uri.sha256} as demanded. Correct the digest, or find out who changed it."
        )


def require_room(root: Path, policy: ImagePolicy, reason: str, size: int) -> None:
    """Raise Refused that begins with `reason` if so many bytes would use the reserve of the data root."""
    free = free_bytes(root) - (policy.reserve_mib << 20)
    if size >= free:
        raise Refused(
            f"{reason}, and {max(0, free) >> 20} MiB are free in {root} beside the reserve of {policy.reserve_mib} MiB "
            "(images.reserve_mib). Free space there, or use another worker.",
            code=Code.NO_ROOM,
        )


def free_bytes(folder: Path) -> int:
    """Return the free bytes of the filesystem of a folder."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize


def _old_bytes(file: IO[bytes], digest: hashlib._Hash) -> int:
    """Digest the bytes in the file and move behind them; return their number."""
    while chunk := file.read(compression.CHUNK):
        digest.update(chunk)
    return file.tell()


def _beginning(chunks: Iterator[bytes]) -> bytes:
    """Return enough bytes to determine the compression, even if the chunks are very small."""
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
    """Append chunks. Zeros become holes, and the reserve stays free even if the source gave a wrong size."""
    unchecked = _CHECK_EVERY
    try:
        for chunk in chunks:
            if compression.is_zero(chunk):
                file.seek(len(chunk), os.SEEK_CUR)
                continue
            unchecked += len(chunk)
            if unchecked >= _CHECK_EVERY:
                unchecked = 0
                require_more_room()
            file.write(chunk)
    finally:
        # After an error too: a hole at the end counts as fetched.
        file.truncate(file.tell())
