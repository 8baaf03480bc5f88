"""The worker's cache of bases: content-addressed, read-only, one fetch per image for all VMs that wait for it.

images/sha256/<digest>         the bytes, for root and QEMU's group to read
images/sha256/<digest>.json    what they are (`inspection.Image`)
images/sha256/<digest>.vdi     the same in VirtualBox's format (`converted`)
images/sha256/<digest>.pin     `clean` keeps this base
images/by-uri/<key>.json       the digest that a URI had, with the validator it had then
images/by-uri/<key>.part       an unfinished fetch (`download.Part`)
images/lock                    held while a base is found, put in its place, or removed
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import BadImage, NotFound, Refused
from worker_service.core.failpoints import failpoint
from worker_service.core.host import User
from worker_service.core.settings import OwnerPolicy
from worker_service.fs import atomic_files, locks, private
from worker_service.images import converted, qemu_img
from worker_service.images.download import Download, Fetched, Part, check_digest, free_bytes, require_room
from worker_service.images.fetch_notes import FetchNote, FetchNotes, key_of
from worker_service.images.inspection import Image, Use, check_use, inspect
from worker_service.transfer import registry
from worker_service.transfer.registry import CannotResume, Head, Report, Source, Visit, check_source, source
from worker_service.transfer.uri import Uri

log = logging.getLogger("saltern.images")

__all__ = ["Base", "Cache", "CacheEntry", "free_bytes"]

_WAIT_S: Final = 0.1
_GIB: Final = 1 << 30
_BLOCK: Final = 512
_YOUNG_S: Final = 60.0


class Base(msgspec.Struct, frozen=True):
    """A cached image that a VM can boot from."""

    digest: str
    path: Path
    image: Image
    source: str
    """Digest of the bytes at its URI. It differs from `digest` if they are packed."""


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A base in the cache. `size` in bytes; `last_used` in seconds since the epoch."""

    sha256: str
    size: int
    last_used: float
    uris: tuple[str, ...]
    pinned: bool = False


class BeingFetched(Exception):
    """Another process fetches that image now. Try again when it has ended."""


class Cache:
    """The bases under one data root, as the VMs of one owner may use them.

    All owners share the files. A VM gets a base only from a source that its owner may read: the source has answered
    this owner now, or a source has given the owner the same bytes before, which a digest must name then.

    Args:
        root: the data root.
        policy: what the owner may do.
        qemu_user: QEMU's user, as which images are examined; None: the user of this process.
    """

    def __init__(self, root: Path, policy: OwnerPolicy, qemu_user: User | None = None) -> None:
        self._policy = policy
        self._qemu_user = qemu_user
        self._bases = root / "images" / "sha256"
        self._by_uri = root / "images" / "by-uri"
        self._notes = FetchNotes(self._by_uri, policy.owner)
        self._lock = root / "images" / "lock"

    def prepare(self, gid: int = -1) -> None:
        """Make the folders. QEMU's group reaches the bases in them; -1 stands for the group of this process."""
        private.make_folder(self._bases.parent, gid)
        private.make_folder(self._bases, gid)
        self._by_uri.mkdir(exist_ok=True, mode=0o700)

    def path(self, digest: str) -> Path:
        """Return the path of a base."""
        return self._bases / digest

    def lend(self, digest: str) -> Path:
        """Return the path of a base that QEMU's user can read. libvirt makes it root's alone after a VM of 0.1.

        Raises BadImage if the base is gone, or has another size than when it was fetched: QEMU reads zeros behind its
        end, and a guest or a saved disk would get them.
        """
        path, image = self.path(digest), self.image(digest)
        if not path.exists():
            raise BadImage(f"The base {path} is missing. Fetch its image again, as vmachines.cache_prefetch does.")
        found = path.stat().st_size
        if image is not None and image.size not in (None, found):
            raise BadImage(
                f"The base {path} has {found} bytes, not {image.size}: that disk has lost some. Put it back."
            )
        private.set_access(path, private.BASE, self._bases.stat().st_gid)
        return path

    def image(self, digest: str) -> Image | None:
        """Return what is noted about a base."""
        try:
            return msgspec.json.decode(_note_of(self.path(digest)).read_bytes(), type=Image)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None

    def uris(self) -> tuple[str, ...]:
        """Return the URIs of all cached images, for placement."""
        with suppress(FileNotFoundError):
            return tuple(sorted(note.uri for note in self._notes.all() if self.path(note.digest).exists()))
        return ()

    def fetch(self, uri: Uri, use: Use | None, report: Report, *, patience_s: float = math.inf) -> Base:
        """Return the base for a URI, from the cache or from its source. Raises TransferFailed, BadImage, Refused.

        Args:
            uri: the image.
            use: the drive that it has to fit; None: not known yet.
            report: gets the progress, and may raise to interrupt. The fetched bytes stay for the next try if a source
                can resume.
            patience_s: how long to wait for another process that fetches the same image. BeingFetched is raised then.
        """
        check_source(uri, self._policy)
        base = self._without_source(uri)
        if base is None:
            with self._single_flight(uri, lambda: report(0, None), patience_s):
                base = self._without_source(uri) or self._from_source(uri, report)
        check_use(base.image, use)
        return base

    def _without_source(self, uri: Uri) -> Base | None:
        """Return the base of a URI if the owner has got exactly these bytes before, so that no source is asked."""
        known = self._notes.remembered(uri)
        base = self._cached(known, uri)
        if known and base and known.uri != uri.text:
            self._notes.write_same(uri, known)
        return base

    def _from_source(self, uri: Uri, report: Report) -> Base:
        key, reader = key_of(uri), source(uri, self._policy)
        try:
            return self._visit(uri, reader, self._part(key).found(), key, report)
        except CannotResume:
            return self._visit(uri, reader, None, key, report)

    def _visit(self, uri: Uri, reader: Source, part: registry.Part | None, key: str, report: Report) -> Base:
        """Ask a source for an image, and read it unless the source confirms the base that is here."""
        with registry.visit(reader, uri, part) as visit:
            if base := self._cached(self._notes.confirmed(uri, visit.head), uri):
                self._notes.add_owner(uri)
                return base
            size = visit.head.size or 0
            require_room(self._bases.parents[1], self._policy, f"{uri} has {-(-size >> 20)} MiB", size)
            return self._download(uri, visit, key, report)

    def has(self, uri: Uri, head: Head) -> bool:
        """Return whether the base of a URI is here, if its source now answers `head`."""
        return self.here(uri, head) is not None

    def here(self, uri: Uri, head: Head) -> str | None:
        """Return the digest of the base of a URI if it is here and its source now answers `head`."""
        known = self._notes.remembered(uri) or self._notes.confirmed(uri, head)
        return known.digest if known is not None and self.path(known.digest).exists() else None

    def entries(self) -> tuple[CacheEntry, ...]:
        """Return all bases in the cache."""
        uris: dict[str, list[str]] = {}
        for note in self._notes.all():
            uris.setdefault(note.digest, []).append(note.uri)
        bases = [path for path in sorted(self._bases.glob("*")) if not path.suffix and not path.name.startswith(".")]
        return tuple(_entry(path, uris.get(path.name, [])) for path in bases)

    def sources(self) -> dict[str, list[FetchNote]]:
        """Return what is known of the URIs of each base, by its digest."""
        found: dict[str, list[FetchNote]] = {}
        for note in self._notes.all():
            found.setdefault(note.digest, []).append(note)
        return found

    def in_use(self, digests: Iterable[str], uris: Iterable[Uri]) -> set[str]:
        """Return the digests of the bases that must stay: those given, and those known for the URIs."""
        return set(digests).union(*(self._notes.digests(uri) for uri in uris))

    def are_being_fetched(self, uris: Iterable[Uri]) -> bool:
        """Return whether another process fetches one of these images now."""
        return any(self._is_being_fetched(uri) for uri in uris)

    def _is_being_fetched(self, uri: Uri) -> bool:
        if not any(map(self._is_held, self._flights(uri))):
            return False
        known = self._notes.remembered(uri)
        return known is None or not self.path(known.digest).exists()

    @staticmethod
    def _is_held(lock: Path) -> bool:
        if not lock.exists():
            return False
        with locks.locked(lock, wait=False) as free:
            return not free

    def pin(self, digest: str) -> None:
        """Keep a base when the cache is cleaned. Raises NotFound for a base that is not here."""
        with locks.locked(self._lock):
            if not self.path(digest).exists():
                raise NotFound(f"There is no image {digest} in the cache. `vmachines.cache` shows those that are.")
            atomic_files.write(self._pin(digest), b"")

    def unpin(self, digest: str) -> None:
        """Allow `clean` to remove a base again when no VM uses it."""
        self._pin(digest).unlink(missing_ok=True)
        atomic_files.sync_folder(self._bases)

    def clean(
        self, in_use: Collection[str], *, preview: bool = False, keep_bytes: int | None = None
    ) -> list[CacheEntry]:
        """Remove the least recently used bases until the cache is within its limit; return what was removed.

        Bases stay that are in use or pinned, or were found or fetched within the last minute: a VM that has just got
        one may not have noted it in its record yet.

        Args:
            in_use: digests that stay, from `in_use`.
            preview: remove nothing, and return what would be removed.
            keep_bytes: space that bases may use on the disk; None: `images.cache_gib`.
        """
        limit = self._policy.cache_gib * _GIB if keep_bytes is None else keep_bytes
        removed: list[CacheEntry] = []
        with locks.locked(self._lock):
            entries = sorted(self.entries(), key=lambda entry: entry.last_used)
            sizes = {entry.sha256: self._blocks(entry.sha256) * _BLOCK for entry in entries}
            total, young = sum(sizes.values()), time.time() - _YOUNG_S
            for entry in entries:
                if total <= limit:
                    break
                if entry.pinned or entry.sha256 in in_use or entry.last_used > young:
                    continue
                total -= sizes[entry.sha256]
                removed.append(entry)
                if not preview:
                    self._remove(entry)
        return removed

    def _blocks(self, digest: str) -> int:
        """Return the blocks on the disk of a base, with those of its converted form."""
        return self.path(digest).stat().st_blocks + converted.blocks_of(self.path(digest))

    def _remove(self, entry: CacheEntry) -> None:
        """Remove the notes about a base, then its file. After a crash in between, the next `clean` removes the file."""
        for uri in entry.uris:
            self._notes.remove(uri)
        _note_of(self.path(entry.sha256)).unlink(missing_ok=True)
        converted.remove(self.path(entry.sha256))
        self.path(entry.sha256).unlink(missing_ok=True)

    def _pin(self, digest: str) -> Path:
        return self._bases / f"{digest}.pin"

    def drop_part(self, uri: Uri) -> None:
        """Remove the part of an unfinished fetch, unless another process fetches that URI now."""
        key = key_of(uri)
        part = self._part(key)
        if not part.exists():
            return
        with locks.locked(self._by_uri / f"{key}.lock", wait=False) as mine:
            if mine:
                part.drop()

    def _part(self, key: str) -> Part:
        return Part(self._by_uri / f"{key}.part")

    def _download(self, uri: Uri, visit: Visit, key: str, report: Report) -> Base:
        part, keep, head = self._part(key), True, visit.head
        try:
            fetched = Download(uri, visit, self._policy, report).into(part)
            failpoint("fetch.downloaded")
            check_digest(uri, fetched.source)
            base = self._keep(uri, part, fetched)
            failpoint("fetch.cached")
        except BadImage as err:
            keep = False
            raise BadImage(f"{uri} cannot be used. {err}") from err
        except Refused:
            keep = False
            raise
        finally:
            part.end(keep=keep and head.resumable)
        self._notes.write(uri, head.validator, base.digest, fetched.source)
        return base

    def _keep(self, uri: Uri, part: Part, fetched: Fetched) -> Base:
        """Turn a complete part into a base."""
        image = self._examined(part.path, uri)
        if image.is_tar and fetched.content != fetched.source:
            raise BadImage("Inside the packing is a .tar archive. Unpack it, and store the disk image that is in it.")
        if fetched.note:
            log.warning("%s: %s", uri, fetched.note)
            image = msgspec.structs.replace(image, note=fetched.note)
        private.set_access(part.path, private.BASE, self._bases.stat().st_gid)
        atomic_files.sync_file(part.path)
        path = self.path(fetched.content)
        with locks.locked(self._lock):
            atomic_files.write(_note_of(path), msgspec.json.encode(image))
            part.path.replace(path)
        atomic_files.sync_folder(self._bases)
        return Base(fetched.content, path, image, fetched.source)

    def _examined(self, path: Path, uri: Uri) -> Image:
        """Return what a file is. Raises BadImage for one that is cut off, damaged, or not safe to boot."""
        limit = self._policy.max_virtual_gib * _GIB
        image = inspect(path, max_virtual_size=limit, may_lack_end=uri.sha256 is not None)
        if image.format == "qcow2":
            qemu_img.check(path, self._qemu_user)
        return image

    def _cached(self, known: FetchNote | None, uri: Uri) -> Base | None:
        """Return the base of a fetch if it is here and whole, or None. One of an older version is examined first."""
        if known is None:
            return None
        digest, path = known.digest, self.path(known.digest)
        with locks.locked(self._lock):
            image = self.image(digest)
            try:
                if image is None or image.size not in (None, path.stat().st_size):
                    return None
                os.utime(path)  # the time of the last use
            except FileNotFoundError:
                return None
        if image.size is None:
            try:
                image = self._examined(path, uri)
            except BadImage as err:
                raise BadImage(f"{uri} cannot be used. {err}") from err
            atomic_files.write(_note_of(path), msgspec.json.encode(image))
        return Base(digest, path, image, known.fetched or digest)

    def _flights(self, uri: Uri) -> tuple[Path, ...]:
        """Return the locks of a fetch: of the bytes that a digest names, and of the URI with its part.

        The former is the owner's own, because the source of another owner may be slow by intention.
        """
        named = f"{self._policy.owner}\n{uri.sha256}".encode()
        keys = (hashlib.sha256(named).hexdigest()[:32], key_of(uri)) if uri.sha256 else (key_of(uri),)
        return tuple(self._by_uri / f"{key}.lock" for key in keys)

    @contextmanager
    def _single_flight(self, uri: Uri, waiting: Callable[[], None], patience_s: float) -> Iterator[None]:
        """Hold the locks of an image. Waits for them, and `waiting` may raise to interrupt. Raises BeingFetched."""
        deadline = time.monotonic() + patience_s
        with ExitStack() as held:
            for lock in self._flights(uri):
                while (fd := locks.lock(lock, wait=False)) is None:
                    if time.monotonic() > deadline:
                        raise BeingFetched
                    waiting()
                    time.sleep(_WAIT_S)
                held.callback(locks.unlock, fd)
            yield


def _note_of(base: Path) -> Path:
    return base.with_name(f"{base.name}.json")


def _entry(path: Path, uris: list[str]) -> CacheEntry:
    found = path.stat()
    return CacheEntry(
        sha256=path.name,
        size=found.st_size,
        last_used=found.st_mtime,
        uris=tuple(sorted(uris)),
        pinned=path.with_name(f"{path.name}.pin").exists(),
    )
