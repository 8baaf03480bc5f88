"""The worker's cache of bases: content-addressed, read-only, one fetch per image however many VMs wait for it.

images/sha256/<digest>         the bytes, mode 0444
images/sha256/<digest>.json    what they are (`inspection.Image`)
images/by-uri/<key>.json       the digest that a URI had, with the validator it had then
images/by-uri/<key>.part       a fetch under way or broken off; goes on from there under a strong validator
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service import durable
from worker_service.checkpoints import checkpoint
from worker_service.contract import Code
from worker_service.errors import BadImage, Refused, TransferFailed
from worker_service.images.inspection import Image, Use, demand, inspect
from worker_service.images.schemes import Head, Report, Source, source
from worker_service.images.uri import Uri
from worker_service.settings import Images

_WAIT_S: Final = 0.1
_GIB: Final = 1 << 30


class Base(msgspec.Struct, frozen=True):
    """A cached image, ready to be booted from."""

    digest: str
    path: Path
    image: Image


class _Known(msgspec.Struct, frozen=True):
    """What a URI was when it was last fetched."""

    uri: str
    validator: str | None
    digest: str


class Cache:
    """The bases under one data root."""

    def __init__(self, root: Path, policy: Images) -> None:
        self._policy = policy
        self._bases = root / "images" / "sha256"
        self._by_uri = root / "images" / "by-uri"

    def prepare(self) -> None:
        """Make the folders; QEMU passes through to the bases."""
        self._bases.parent.mkdir(exist_ok=True, mode=0o711)
        self._bases.mkdir(exist_ok=True, mode=0o711)
        self._by_uri.mkdir(exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Where a base lies."""
        return self._bases / digest

    def uris(self) -> tuple[str, ...]:
        """The URIs whose images are here, for placement."""
        with suppress(FileNotFoundError):
            known = (self._known(path) for path in self._by_uri.glob("*.json"))
            return tuple(sorted(entry.uri for entry in known if entry and self.path(entry.digest).exists()))
        return ()

    def fetch(self, uri: Uri, use: Use, report: Report) -> Base:
        """The base for a URI, from the cache or from its source. Raises TransferFailed, BadImage, Refused.

        `report` may raise to interrupt; what was fetched until then stays for the next try where that is safe.
        """
        if uri.sha256 and (base := self._cached(uri.sha256)):
            demand(base.image, use)
            return base  # those very bytes are here: nobody needs to be asked
        key = _key(uri)
        with self._single_flight(key, lambda: report(0, None)):
            reader = source(uri, self._policy)
            head = reader.head(uri)
            known = self._known(self._by_uri / f"{key}.json")
            if known and head.validator and known.validator == head.validator and uri.sha256 in (None, known.digest):
                base = self._cached(known.digest)
            else:
                base = None
            if base is None:
                self._demand_room(uri, head.size)
                base = self._download(uri, reader, head, key, report)
        demand(base.image, use)
        return base

    def drop_part(self, uri: Uri) -> None:
        """Remove what a broken-off fetch left, unless somebody fetches that URI now."""
        key = _key(uri)
        if not (self._by_uri / f"{key}.part-of").exists():
            return
        with durable.locked(self._by_uri / f"{key}.lock", wait=False) as mine:
            if mine:
                (self._by_uri / f"{key}.part").unlink(missing_ok=True)
                (self._by_uri / f"{key}.part-of").unlink(missing_ok=True)

    def _download(self, uri: Uri, reader: Source, head: Head, key: str, report: Report) -> Base:
        part = self._by_uri / f"{key}.part"
        mark = self._by_uri / f"{key}.part-of"
        if not (head.resumable and mark.exists() and mark.read_text() == head.validator):
            part.unlink(missing_ok=True)
            mark.write_text(head.validator or "")
        try:
            digest = self._stream(uri, reader, head, part, report)
            checkpoint("fetch.downloaded")
            if uri.sha256 and digest != uri.sha256:
                raise BadImage(
                    f"{uri} has the sha256 {digest}, not {uri.sha256} as demanded. "
                    "Correct the digest, or find out who changed the image."
                )
            try:
                image = inspect(part, max_virtual_size=self._policy.max_virtual_gib * _GIB)
            except BadImage as err:
                raise BadImage(f"{uri} cannot be used. {err}") from err
            part.chmod(0o444)
            durable.sync_file(part)
            durable.write(self._bases / f"{digest}.json", msgspec.json.encode(image), mode=0o644)
            part.replace(self.path(digest))
            durable.sync_folder(self._bases)
            checkpoint("fetch.cached")
        except BaseException as err:
            if not head.resumable or isinstance(err, BadImage | Refused):
                part.unlink(missing_ok=True)
            raise
        finally:
            if not part.exists():
                mark.unlink(missing_ok=True)
        durable.write(self._by_uri / f"{key}.json", msgspec.json.encode(_Known(uri.text, head.validator, digest)))
        return Base(digest, self.path(digest), image)

    def _stream(self, uri: Uri, reader: Source, head: Head, part: Path, report: Report) -> str:
        """Append to the part what is missing; returns the sha256 of the whole."""
        digest = hashlib.sha256()
        limit = self._policy.max_download_gib * _GIB
        with part.open("ab") as file:
            done = file.tell()
            if done:
                with part.open("rb") as old:
                    while chunk := old.read(1 << 20):
                        digest.update(chunk)
            for chunk in reader.read(uri, done, head) if done != head.size else ():
                done += len(chunk)
                if done > limit or (head.size is not None and done > head.size):
                    raise BadImage(f"{uri} sends more bytes than it said, or than are allowed ({limit >> 30} GiB).")
                digest.update(chunk)
                file.write(chunk)
                report(done, head.size)
                checkpoint("fetch.chunk")
        if head.size is not None and done != head.size:
            raise TransferFailed(f"{uri} broke off after {done} of {head.size} bytes. It is tried again from there.")
        return digest.hexdigest()

    def _demand_room(self, uri: Uri, size: int | None) -> None:
        free = free_bytes(self._bases) - (self._policy.reserve_mib << 20)
        if size is not None and size > free:
            raise Refused(
                f"{uri} has {size >> 20} MiB, and {max(0, free) >> 20} MiB are free in {self._bases.parent.parent}. "
                "Free space there, or use another worker.",
                code=Code.NO_ROOM,
            )

    def _cached(self, digest: str) -> Base | None:
        path = self.path(digest)
        try:
            image = msgspec.json.decode(path.with_name(f"{digest}.json").read_bytes(), type=Image)
            os.utime(path)  # last used: now
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        return Base(digest, path, image)

    @staticmethod
    def _known(path: Path) -> _Known | None:
        try:
            return msgspec.json.decode(path.read_bytes(), type=_Known)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    @contextmanager
    def _single_flight(self, key: str, waiting: Callable[[], None]) -> Iterator[None]:
        """Be the one that fetches; others wait here, and may be interrupted while they do."""
        while True:
            with durable.locked(self._by_uri / f"{key}.lock", wait=False) as mine:
                if mine:
                    yield
                    return
            waiting()
            time.sleep(_WAIT_S)


def _key(uri: Uri) -> str:
    return hashlib.sha256(uri.text.encode()).hexdigest()[:32]


def free_bytes(folder: Path) -> int:
    """Free space of the filesystem that a folder lies on."""
    usage = os.statvfs(folder)
    return usage.f_bavail * usage.f_frsize
