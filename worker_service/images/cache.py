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
import math
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.contract.uri_secrets import has_secret
from worker_service.core.errors import BadImage, NotFound, Refused
from worker_service.core.failpoints import failpoint
from worker_service.core.settings import OwnerPolicy
from worker_service.fs import atomic_files, locks, private
from worker_service.images.download import Download, Part, check_digest, free_bytes, require_room
from worker_service.images.inspection import Image, Use, check_use, inspect
from worker_service.transfer import registry
from worker_service.transfer.registry import CannotResume, Head, Report, Source, Visit, check_source, source
from worker_service.transfer.uri import Uri, parse

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
    this owner now, or a source has given the owner the same bytes before, which a digest must name then.
    """

    def __init__(self, root: Path, policy: OwnerPolicy) -> None:
        self._policy = policy
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
        """Return the path of a base that QEMU's user can read. libvirt makes it root's alone after a VM of 0.1."""
        path = self.path(digest)
        with suppress(FileNotFoundError):  # its reader says what is missing
            private.set_access(path, private.BASE, self._bases.stat().st_gid)
        return path

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
        base = self._without_source(uri)
        if base is None:
            with self._single_flight(uri, lambda: report(0, None), patience_s):
                base = self._without_source(uri) or self._from_source(uri, report)
        check_use(base.image, use)
        return base

    def _without_source(self, uri: Uri) -> Base | None:
        """Return the base of a URI if the owner has got exactly these bytes before, so that no source is asked."""
        known = self._remembered(uri)
        base = self._cached(known.digest) if known else None
        if known and base and known.uri != uri.text:
            self._note_same(uri, known)
        return base

    def _from_source(self, uri: Uri, report: Report) -> Base:
        key, reader = _key(uri), source(uri, self._policy)
        try:
            return self._visit(uri, reader, self._part(key).found(), key, report)
        except CannotResume:
            return self._visit(uri, reader, None, key, report)

    def _visit(self, uri: Uri, reader: Source, part: registry.Part | None, key: str, report: Report) -> Base:
        """Ask a source for an image, and read it unless the source confirms the base that is here."""
        with registry.visit(reader, uri, part) as visit:
            if base := self._cached(self._confirmed(uri, visit.head)):
                self._remember_owner(key)
                return base
            size = visit.head.size or 0
            require_room(self._bases.parents[1], self._policy, f"{uri} has {-(-size >> 20)} MiB", size)
            return self._download(uri, visit, key, report)

    def has(self, uri: Uri, head: Head) -> bool:
        """Return whether the base of a URI is here, if its source now answers `head`."""
        known = self._remembered(uri)
        digest = known.digest if known else self._confirmed(uri, head)
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
        if not any(map(self._is_held, self._flights(uri))):
            return False
        known = self._remembered(uri)
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
        self.path(entry.sha256).with_name(f"{entry.sha256}.json").unlink(missing_ok=True)
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

    def _download(self, uri: Uri, visit: Visit, key: str, report: Report) -> Base:
        part, keep, head = self._part(key), True, visit.head
        try:
            fetched = Download(uri, visit, self._policy, report).into(part)
            failpoint("fetch.downloaded")
            check_digest(uri, fetched.source)
            base = self._keep(part, fetched.content)
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

    def _keep(self, part: Part, digest: str) -> Base:
        """Turn a complete part into a base."""
        image = inspect(part.path, max_virtual_size=self._policy.max_virtual_gib * _GIB)
        private.set_access(part.path, private.BASE, self._bases.stat().st_gid)
        atomic_files.sync_file(part.path)
        with locks.locked(self._lock):
            atomic_files.write(self._bases / f"{digest}.json", msgspec.json.encode(image))
            part.path.replace(self.path(digest))
        atomic_files.sync_folder(self._bases)
        return Base(digest, self.path(digest), image)

    def _remembered(self, uri: Uri) -> _Known | None:
        """Return the note of a fetch that gave the owner the bytes that a URI with a digest names.

        From which URI they came does not matter: a digest names them wherever they are, whichever signature a URL has.
        """
        own = self._by_uri / f"{_key(uri)}.json"
        paths = (own, *(path for path in self._by_uri.glob("*.json") if path != own)) if uri.sha256 else ()
        for known in map(self._known, paths):
            if known and uri.sha256 == (known.fetched or known.digest) and self._policy.owner in known.owners:
                return known
        return None

    def _note_same(self, uri: Uri, known: _Known) -> None:
        """Note that a URI has the bytes of another one. Its source has not said so: there is no validator."""
        path = self._by_uri / f"{_key(uri)}.json"
        if not path.exists():
            same = _Known(uri.text, None, known.digest, known.fetched, (self._policy.owner,))
            atomic_files.write(path, msgspec.json.encode(same))

    def _confirmed(self, uri: Uri, head: Head) -> str | None:
        """Return the digest that a URI had, if its source says that it has the same bytes. The base may be gone."""
        known = self._known(self._by_uri / f"{_key(uri)}.json")
        same = known is not None and head.validator is not None and head.validator == known.validator
        fits = known is not None and uri.sha256 in (None, known.fetched or known.digest)
        return known.digest if known and same and fits else None

    def _cached(self, digest: str | None) -> Base | None:
        if digest is None:
            return None
        path = self.path(digest)
        with locks.locked(self._lock):
            try:
                image = msgspec.json.decode(path.with_name(f"{digest}.json").read_bytes(), type=Image)
                os.utime(path)  # the time of the last use
            except (FileNotFoundError, msgspec.MsgspecError):
                return None
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

    def _flights(self, uri: Uri) -> tuple[Path, ...]:
        """Return the locks of a fetch: of the bytes that a digest names, and of the URI with its part.

        The former is the owner's own, because the source of another owner may be slow by intention.
        """
        named = f"{self._policy.owner}\n{uri.sha256}".encode()
        keys = (hashlib.sha256(named).hexdigest()[:32], _key(uri)) if uri.sha256 else (_key(uri),)
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
