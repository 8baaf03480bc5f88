"""The registry of URI schemes. A new scheme is one class here, or a package with an entry point `saltern.schemes`.

The entry point has the name of the scheme and refers to a class like those here. Its argument is the `OwnerPolicy` of
the VM's owner, by which `transfer.access` decides. A class with `read` is a `Source`, one with `commit` is a `Target`.
A package cannot replace a scheme that is built in.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec

from worker_service.contract import SCHEME_ENTRY_POINTS, Code
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.settings import OwnerPolicy
from worker_service.transfer import credentials
from worker_service.transfer.uri import MANIFEST_SUFFIX, Uri, place, save_form

MOST_NAME_BYTES: Final = 200
"""The limit of a saved disk's name. Filesystems take 255 bytes, and a conflict name with a manifest adds 51."""
MOST_KEY_BYTES: Final = 970
"""The same for a whole key of S3, which has 1024 bytes."""
MANIFEST_BYTES: Final = 1 << 20
"""The limit of a manifest. Its longest parts are the tails of failed installations."""

Report = Callable[[int, int | None], None]
"""A function of the bytes done and the total. It may raise to interrupt the transfer."""


class Head(msgspec.Struct, frozen=True):
    """The facts about an image that a source knows before reading it. `size` in bytes."""

    size: int | None
    validator: str | None
    """Changes whenever the bytes change (an ETag, an inode with its time); None if the source has none."""
    resumable: bool = False
    """Whether a fetch may resume. This needs a strong validator."""


class Part(NamedTuple):
    """The beginning of an image that an interrupted fetch left: its bytes, and the strong validator it had then."""

    size: int
    validator: str


class Visit(NamedTuple):
    """One answer of a source: the head, and the bytes from `begins` on, which are read only if they are needed."""

    head: Head
    begins: int
    chunks: Iterator[bytes]


class CannotResume(TransferFailed):
    """A source can only send its bytes from the beginning, although its head said otherwise."""


class Source(Protocol):
    """Reads images of one scheme. Raises TransferFailed, Refused.

    A source that is reached over a network may also have `visit(uri, part)`, like the function `visit` below. Two
    requests may reach two servers that disagree about an image; one cannot.
    """

    def check(self, uri: Uri) -> None:
        """Refuse URIs that the site's policy forbids, as far as the URI alone shows it."""

    def head(self, uri: Uri) -> Head:
        """Return size and validator."""

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """Yield the bytes from an offset on. Raises CannotResume if the offset can only be 0."""


class Target(Protocol):
    """Writes images of one scheme. It has two steps, so that all disks are staged before any is committed."""

    def check(self, uri: Uri, *, write: bool) -> None:
        """Refuse URIs that the site's policy forbids, as far as the URI alone shows it."""

    def observe(self, uri: Uri) -> str | None:
        """Return a validator of the file at the target, or None. Raises Refused if a folder or a link is there."""

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:
        """Write beside the target, read back, and return a token for `commit`. `key` names the parts of this VM."""

    def commit(self, uri: Uri, token: str, sha256: str, observed: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Put the staged image under its name and return its URI: another one if the target is not `observed` any more.

        If the store cannot rename, this step sends the bytes; `report` may interrupt it.
        """

    def manifest(self, uri: Uri) -> bytes | None:
        """Return at most MANIFEST_BYTES of the file that has the name of a saved image's manifest, or None."""

    def note(self, saved: str, manifest: bytes) -> None:
        """Write the manifest beside a saved image."""

    def discard(self, uri: Uri, source: Path, key: str) -> None:
        """Remove the parts of unfinished tries of this VM. `source` may be gone; notes may lie beside it."""


def visit(reader: Source, uri: Uri, part: Part | None) -> AbstractContextManager[Visit]:
    """Ask a source for an image: for the rest behind `part` if it still has the same bytes, otherwise for everything.

    Raises CannotResume if the source can only be asked for everything.
    """
    own = getattr(reader, "visit", None)
    found: AbstractContextManager[Visit] = own(uri, part) if own else _head_and_read(reader, uri, part)
    return found


@contextmanager
def _head_and_read(reader: Source, uri: Uri, part: Part | None) -> Iterator[Visit]:
    head = reader.head(uri)
    begins = part.size if part and head.resumable and head.validator == part.validator else 0

    def chunks() -> Iterator[bytes]:
        yield from reader.read(uri, begins, head)

    yield Visit(head, begins, chunks())


# Modules are named and not imported, so that a helper that copies a file does not load an HTTP client.
# A test compares the schemes with those of the contract, which the master uses.
_SOURCES: Final[Mapping[str, str]] = {
    "file": "worker_service.transfer.file:Files",
    "http": "worker_service.transfer.http:Http",
    "https": "worker_service.transfer.http:Http",
    "s3": "worker_service.transfer.s3:S3",
    "salt": "worker_service.transfer.salt:Salt",
    "sftp": "worker_service.transfer.sftp:Sftp",
}
_TARGETS: Final[Mapping[str, str]] = {
    "file": "worker_service.transfer.file:Files",
    "http": "worker_service.transfer.http_put:Put",
    "https": "worker_service.transfer.http_put:Put",
    "s3": "worker_service.transfer.s3:S3",
    "sftp": "worker_service.transfer.sftp:Sftp",
}


def known_sources() -> tuple[str, ...]:
    """Return the schemes that images can be fetched from."""
    return _known(_SOURCES, "read")


def known_targets() -> tuple[str, ...]:
    """Return the schemes that disks can be saved to."""
    return _known(_TARGETS, "commit")


def source(uri: Uri, policy: OwnerPolicy) -> Source:
    """Return the reader for a URI. Raises BadRequest for an unknown scheme."""
    maker = _built_in(_SOURCES, uri.scheme) or _installed(uri.scheme, "read")
    if maker is None:
        raise _unknown(uri, "fetched from", known_sources())
    reader: Source = maker(policy)
    return reader


def target(uri: Uri, policy: OwnerPolicy) -> Target:
    """Return the writer for a URI. Raises BadRequest for a scheme that cannot be written."""
    maker = _built_in(_TARGETS, uri.scheme) or _installed(uri.scheme, "commit")
    if maker is None:
        raise _unknown(uri, "saved to", known_targets())
    writer: Target = maker(policy)
    return writer


def _built_in(known: Mapping[str, str], scheme: str) -> Any:
    module, _, name = known.get(scheme, "").partition(":")
    return getattr(import_module(module), name) if module else None


def _installed(scheme: str, verb: str) -> Any:
    """Return the class of a package for a scheme, if it has `verb`. Raises Refused if it cannot be loaded."""
    if scheme in {*_SOURCES, *_TARGETS}:
        return None
    from importlib.metadata import entry_points  # noqa: PLC0415 - only an unknown scheme needs it

    for entry in entry_points(group=SCHEME_ENTRY_POINTS, name=scheme):
        try:
            maker = entry.load()
        except Exception as err:  # a package may raise anything when it is imported
            raise Refused(
                f"The package for the scheme {scheme!r} cannot be loaded ({entry.value}: {err}). Repair or remove it.",
                code=Code.UNSUPPORTED,
            ) from err
        return maker if hasattr(maker, verb) else None
    return None


def _known(built_in: Mapping[str, str], verb: str) -> tuple[str, ...]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - as above

    found = set(built_in)
    for name in entry_points(group=SCHEME_ENTRY_POINTS).names:
        with suppress(Refused):  # a request for that scheme gets the error
            found |= {name} if _installed(name, verb) else set()
    return tuple(sorted(found))


def _unknown(uri: Uri, use: str, names: tuple[str, ...]) -> BadRequest:
    return BadRequest(
        f"The scheme {uri.scheme!r} of {uri} is unknown. Images can be {use} these schemes: {', '.join(names)}."
    )


def check_source(uri: Uri, policy: OwnerPolicy) -> None:
    """Refuse a URI that fetching would refuse later, as far as the URI shows it."""
    credentials.refuse_secrets(uri)
    source(uri, policy).check(uri)


def check_target(uri: Uri, policy: OwnerPolicy) -> None:
    """Refuse a URI that saving would refuse later, as far as the URI shows it."""
    if uri.sha256:
        raise Refused(f"{uri} has a digest, and a disk that is not written yet has none. Leave out the part after #.")
    credentials.refuse_secrets(uri)
    if uri.path.endswith(MANIFEST_SUFFIX):
        raise Refused(
            f"{uri} has the name of a manifest, and no disk is saved under it. Choose another name.", code=Code.POLICY
        )
    _check_name(uri)
    save_form(uri)
    target(place(uri), policy).check(place(uri), write=True)


def look_at_target(uri: Uri, policy: OwnerPolicy) -> None:
    """Refuse a place on this worker where a folder or a link is. Others are looked at when images are fetched."""
    if uri.scheme == "file":
        with suppress(TransferFailed):  # a share may be mounted later; the start fails until then
            target(place(uri), policy).observe(place(uri))


def _check_name(uri: Uri) -> None:
    """Refuse a name that no disk can have, or that leaves no room for the names of its parts and its manifest."""
    name, whole = uri.path.rpartition("/")[2], uri.scheme == "s3"
    if not name:
        raise Refused(f"{uri} names a folder. Add the name of a file.", code=Code.POLICY)
    length, most = len(os.fsencode(uri.path if whole else name)), MOST_KEY_BYTES if whole else MOST_NAME_BYTES
    if length > most:
        raise Refused(
            f"The name of {uri} has {length} bytes, and at most {most} leave room for the names of its parts and its "
            "manifest. Choose a shorter name.",
            code=Code.POLICY,
        )
