"""The worker's cache of bases: content-addressed, read-only, one fetch per image for all VMs that wait for it.

images/sha256/<digest>         the bytes, for root and QEMU's group to read
images/sha256/<digest>.json    what they are (`inspection.Image`)
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
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.contract.uri_secrets import has_secret
from worker_service.core.errors import BadImage, NotFound, Refused
from worker_service.core.failpoints import failpoint
from worker_service.core.host import User
from worker_service.core.settings import OwnerPolicy
from worker_service.fs import atomic_files, locks, private
from worker_service.images import qemu_img
from worker_service.images.download import Download, Fetched, Part, check_digest, free_bytes, require_room
from worker_service.images.inspection import Image, Use, check_use, inspect
from worker_service.transfer.registry import Head, Report, Source, check_source, source
from worker_service.transfer.uri import Uri, parse

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


class CacheEntry(msgspec.Struct, frozen=True, kw_only=True):
    """A base in the cache. `size` in bytes; `last_used` in seconds since the epoch."""

    sha256: str
    size: int
    last_used: float
    uris: tuple[str, ...]
    pinned: bool = False


class _Known(msgspec.Struct, frozen=True):
    """The result of the last fetch of a URI."""

    uri: str
    validator: str | None
    digest: str
    """Digest of the base."""
    fetched: str | None = None
    """Digest of the bytes at the URI. It differs from `digest` if they are compressed."""
    owners: tuple[str, ...] = ()
    """The owners to whom the source has given these bytes, or confirmed that it would. Empty in notes of 0.2."""


class BeingFetched(Exception):
    """Another process fetches that image now. Try again when it has ended."""


class Cache:
    """The bases under one data root, as the VMs of one owner may use them.

    All owners share the files. A VM gets a base only from a source that its owner may read: the source has answered
    this owner, now or when the same bytes were fetched from there for another VM of the owner.

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
            known = (self._known(path) for path in self._by_uri.glob("*.json"))
            return tuple(sorted(entry.uri for entry in known if entry and self.path(entry.digest).exists()))
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
        if base := self._cached(self._remembered(uri), uri):
            check_use(base.image, use)
            return base  # exactly these bytes are here, from this source, so it is not asked
        key = _key(uri)
        with self._single_flight(key, lambda: report(0, None), patience_s):
            reader = source(uri, self._policy)
            head = reader.head(uri)
            base = self._cached(self._confirmed(uri, head), uri)
            if base is not None:
                self._remember_owner(key)
            else:
                size = head.size or 0
                require_room(self._bases.parents[1], self._policy, f"{uri} has {-(-size >> 20)} MiB", size)
                base = self._download(uri, reader, head, key, report)
        check_use(base.image, use)
        return base

    def has(self, uri: Uri, head: Head) -> bool:
        """Return whether the base of a URI is here, if its source now answers `head`."""
        digest = self._confirmed(uri, head)
        return digest is not None and self.path(digest).exists()

    def entries(self) -> tuple[CacheEntry, ...]:
        """Return all bases in the cache."""
        uris: dict[str, list[str]] = {}
        for path in self._by_uri.glob("*.json"):
            if known := self._known(path):
                uris.setdefault(known.digest, []).append(known.uri)
        bases = [path for path in sorted(self._bases.glob("*")) if not path.suffix and not path.name.startswith(".")]
        return tuple(_entry(path, uris.get(path.name, [])) for path in bases)

    def in_use(self, digests: Iterable[str], uris: Iterable[Uri]) -> set[str]:
        """Return the digests of the bases that must stay: those given, and those known for the URIs."""
        return set(digests).union(*(self._known_digests(uri) for uri in uris))

    def are_being_fetched(self, uris: Iterable[Uri]) -> bool:
        """Return whether another process fetches one of these images now."""
        return any(self._is_being_fetched(uri) for uri in uris)

    def _is_being_fetched(self, uri: Uri) -> bool:
        lock = self._by_uri / f"{_key(uri)}.lock"
        remembered = self._remembered(uri)
        if not lock.exists() or (remembered and self.path(remembered).exists()):
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
            sizes = {entry.sha256: self.path(entry.sha256).stat().st_blocks * _BLOCK for entry in entries}
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

    def _remove(self, entry: CacheEntry) -> None:
        """Remove the notes about a base, then its file. After a crash in between, the next `clean` removes the file."""
        for uri in entry.uris:
            (self._by_uri / f"{_key(parse(uri))}.json").unlink(missing_ok=True)
        _note_of(self.path(entry.sha256)).unlink(missing_ok=True)
        self.path(entry.sha256).unlink(missing_ok=True)

    def _pin(self, digest: str) -> Path:
        return self._bases / f"{digest}.pin"

    def _known_digests(self, uri: Uri) -> set[str]:
        known = self._known(self._by_uri / f"{_key(uri)}.json")
        return {digest for digest in (uri.sha256, known.digest if known else None) if digest}

    def drop_part(self, uri: Uri) -> None:
        """Remove the part of an unfinished fetch, unless another process fetches that URI now."""
        key = _key(uri)
        part = self._part(key)
        if not part.exists():
            return
        with locks.locked(self._by_uri / f"{key}.lock", wait=False) as mine:
            if mine:
                part.drop()

    def _part(self, key: str) -> Part:
        return Part(self._by_uri / f"{key}.part")

    def _download(self, uri: Uri, reader: Source, head: Head, key: str, report: Report) -> Base:
        part, keep = self._part(key), True
        part.begin(head)
        try:
            fetched = Download(uri, reader, head, self._policy, report).into(part)
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
        known = _Known(uri.text, head.validator, base.digest, fetched.source, (self._policy.owner,))
        atomic_files.write(self._by_uri / f"{key}.json", msgspec.json.encode(known))
        return base

    def _remember_owner(self, key: str) -> None:
        """Note that the source has confirmed the cached bytes to this owner. The caller holds the lock of the image."""
        path, owner = self._by_uri / f"{key}.json", self._policy.owner
        known = self._known(path)
        if known and owner not in known.owners:
            known = msgspec.structs.replace(known, owners=(*known.owners, owner))
            atomic_files.write(path, msgspec.json.encode(known))

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
        return Base(fetched.content, path, image)

    def _examined(self, path: Path, uri: Uri) -> Image:
        """Return what a file is. Raises BadImage for one that is cut off, damaged, or not safe to boot."""
        limit = self._policy.max_virtual_gib * _GIB
        image = inspect(path, max_virtual_size=limit, may_lack_end=uri.sha256 is not None)
        if image.format == "qcow2":
            qemu_img.check(path, self._qemu_user)
        return image

    def _remembered(self, uri: Uri) -> str | None:
        """Return the digest of the base for a URI with a digest, if its source gave these bytes to the owner."""
        known = self._known(self._by_uri / f"{_key(uri)}.json") if uri.sha256 else None
        same = known is not None and uri.sha256 == (known.fetched or known.digest)
        return known.digest if known and same and self._policy.owner in known.owners else None

    def _confirmed(self, uri: Uri, head: Head) -> str | None:
        """Return the digest that a URI had, if its source says that it has the same bytes. The base may be gone."""
        known = self._known(self._by_uri / f"{_key(uri)}.json")
        same = known is not None and head.validator is not None and head.validator == known.validator
        fits = known is not None and uri.sha256 in (None, known.fetched or known.digest)
        return known.digest if known and same and fits else None

    def _cached(self, digest: str | None, uri: Uri) -> Base | None:
        """Return a base that is whole, or None. One of an older version is examined first."""
        if digest is None:
            return None
        path = self.path(digest)
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
        return Base(digest, path, image)

    @staticmethod
    def _known(path: Path) -> _Known | None:
        try:
            known = msgspec.json.decode(path.read_bytes(), type=_Known)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        if has_secret(known.uri):  # version 0.1 accepted such a URI, and a signature is valid only for a while
            path.unlink(missing_ok=True)
            return None
        return known

    @contextmanager
    def _single_flight(self, key: str, waiting: Callable[[], None], patience_s: float) -> Iterator[None]:
        """Hold the lock of an image. Waits for it, and `waiting` may raise to interrupt. Raises BeingFetched."""
        deadline = time.monotonic() + patience_s
        while True:
            with locks.locked(self._by_uri / f"{key}.lock", wait=False) as mine:
                if mine:
                    yield
                    return
            if time.monotonic() > deadline:
                raise BeingFetched
            waiting()
            time.sleep(_WAIT_S)


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


def _key(uri: Uri) -> str:
    return hashlib.sha256(uri.text.encode()).hexdigest()[:32]
