"""What is known of each URI: the digest of the bytes that its source gave last, and the owners who may have them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import msgspec

from worker_service.contract.uri_secrets import has_secret
from worker_service.fs import atomic_files
from worker_service.transfer.registry import Head
from worker_service.transfer.uri import Uri, parse


class FetchNote(msgspec.Struct, frozen=True):
    """The result of the last fetch of a URI."""

    uri: str
    validator: str | None
    digest: str
    """Digest of the base."""
    fetched: str | None = None
    """Digest of the bytes at the URI. It differs from `digest` if they are compressed."""
    owners: tuple[str, ...] = ()
    """The owners to whom the source has given these bytes, or confirmed that it would. Empty in notes of 0.2."""


def key_of(uri: Uri) -> str:
    """Return the name of the files about a URI."""
    return hashlib.sha256(uri.text.encode()).hexdigest()[:32]


class FetchNotes:
    """The notes in a folder, as they hold for the VMs of one owner."""

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner

    def of(self, uri: Uri) -> FetchNote | None:
        """Return the note of a URI."""
        return self._read(self._path(uri))

    def all(self) -> Iterator[FetchNote]:
        """Yield the notes of all URIs."""
        yield from (note for path in self._folder.glob("*.json") if (note := self._read(path)))

    def remembered(self, uri: Uri) -> FetchNote | None:
        """Return the note of a fetch that gave the owner the bytes that a URI with a digest names.

        From which URI they came does not matter: a digest names them wherever they are, whichever signature a URL has.
        """
        own = self._path(uri)
        paths = (own, *(path for path in self._folder.glob("*.json") if path != own)) if uri.sha256 else ()
        for note in map(self._read, paths):
            if note and uri.sha256 == (note.fetched or note.digest) and self._owner in note.owners:
                return note
        return None

    def confirmed(self, uri: Uri, head: Head) -> FetchNote | None:
        """Return the note of a URI, if its source says that it has the same bytes. The base may be gone."""
        note = self.of(uri)
        same = note is not None and head.validator is not None and head.validator == note.validator
        fits = note is not None and uri.sha256 in (None, note.fetched or note.digest)
        return note if same and fits else None

    def digests(self, uri: Uri) -> set[str]:
        """Return the digests that a URI may stand for."""
        note = self.of(uri)
        return {digest for digest in (uri.sha256, note.digest if note else None) if digest}

    def write(self, uri: Uri, validator: str | None, digest: str, fetched: str | None) -> None:
        """Note what a source has just given to the owner."""
        note = FetchNote(uri.text, validator, digest, fetched, (self._owner,))
        atomic_files.write(self._path(uri), msgspec.json.encode(note))

    def write_same(self, uri: Uri, note: FetchNote) -> None:
        """Note that a URI has the bytes of another one. Its source has not said so: there is no validator."""
        if not self._path(uri).exists():
            self.write(uri, None, note.digest, note.fetched)

    def add_owner(self, uri: Uri) -> None:
        """Note that the source has confirmed the cached bytes to this owner. The caller holds the lock of the image."""
        note = self.of(uri)
        if note and self._owner not in note.owners:
            note = msgspec.structs.replace(note, owners=(*note.owners, self._owner))
            atomic_files.write(self._path(uri), msgspec.json.encode(note))

    def remove(self, uri: str) -> None:
        """Forget a URI."""
        self._path(parse(uri)).unlink(missing_ok=True)

    def _path(self, uri: Uri) -> Path:
        return self._folder / f"{key_of(uri)}.json"

    @staticmethod
    def _read(path: Path) -> FetchNote | None:
        try:
            note = msgspec.json.decode(path.read_bytes(), type=FetchNote)
        except (FileNotFoundError, msgspec.MsgspecError):
            return None
        if has_secret(note.uri):  # version 0.1 accepted such a URI, and a signature is valid only for a while
            path.unlink(missing_ok=True)
            return None
        return note
