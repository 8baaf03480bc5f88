"""The registry of URI schemes. A new scheme is one class here, or a package with an entry point `saltern.schemes`.

The entry point has the scheme's name and leads to a class like those here: made of the site's policy (`Images`), a
`Source` where it has `read`, a `Target` where it has `commit`. The schemes that are here cannot be replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from worker_service.contract import SCHEME_ENTRY_POINTS, Code
from worker_service.core.errors import BadRequest, Refused, TransferFailed
from worker_service.core.settings import ImagePolicy
from worker_service.transfer.uri import Uri, place, save_form

Report = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all; raises to interrupt the transfer."""


class Head(msgspec.Struct, frozen=True):
    """What a source says of an image before it is read. `size` in bytes."""

    size: int | None
    validator: str | None
    """Changes whenever the bytes change (an ETag, an inode with its time); None where the source has none."""
    resumable: bool = False
    """Whether reading may go on in the middle: only under a strong validator."""


class CannotResume(TransferFailed):
    """A source gives its bytes from the first one on only, whatever its head let hope for."""


class Source(Protocol):
    """Reads images of one scheme. Raises TransferFailed, Refused."""

    def check(self, uri: Uri) -> None:
        """Refuse what the site's policy forbids, as far as the URI alone shows it."""

    def head(self, uri: Uri) -> Head:
        """Size and validator, before any byte is read."""

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """The bytes from an offset on. Raises CannotResume where that can only be 0."""


class Target(Protocol):
    """Writes images of one scheme, in two steps so that several disks are committed together."""

    def check(self, uri: Uri, *, write: bool) -> None:
        """Refuse what the site's policy forbids, as far as the URI alone shows it."""

    def observe(self, uri: Uri) -> str | None:
        """A validator of what lies there now, None where nothing does."""

    def stage(self, uri: Uri, source: Path, sha256: str, key: str, report: Report) -> str:
        """Write beside the target, read it back, and return a token for `commit`. `key` names this VM's parts."""

    def commit(self, uri: Uri, token: str, sha256: str, seen: str | None, key: str, report: Report) -> str:  # noqa: PLR0913, PLR0917
        """Put the staged image under its name and return the URI it got: another one where the target has changed.

        Where the store knows no renaming, this is what sends the bytes; `report` may interrupt it.
        """

    def note(self, saved: str, manifest: bytes) -> None:
        """Put the manifest beside a saved image."""

    def discard(self, uri: Uri, source: Path, key: str) -> None:
        """Remove what unfinished tries of this VM left behind. `source` may be gone; notes may lie beside it."""


# Modules are named, not imported: a helper that copies a file does not pay for an HTTP client. The schemes are those of
# `words`, by which a master tells its users what can be fetched; a test holds the two together.
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
    """The schemes that images can be fetched from."""
    return _known(_SOURCES, "read")


def known_targets() -> tuple[str, ...]:
    """The schemes that disks can be saved to."""
    return _known(_TARGETS, "commit")


def source(uri: Uri, policy: ImagePolicy) -> Source:
    """The reader for a URI; raises BadRequest for a scheme that nobody knows."""
    maker = _built_in(_SOURCES, uri.scheme) or _installed(uri.scheme, "read")
    if maker is None:
        raise _unknown(uri, "fetched from", known_sources())
    reader: Source = maker(policy)
    return reader


def target(uri: Uri, policy: ImagePolicy) -> Target:
    """The writer for a URI; raises BadRequest for a scheme that nobody can write."""
    maker = _built_in(_TARGETS, uri.scheme) or _installed(uri.scheme, "commit")
    if maker is None:
        raise _unknown(uri, "saved to", known_targets())
    writer: Target = maker(policy)
    return writer


def _built_in(known: Mapping[str, str], scheme: str) -> Any:
    module, _, name = known.get(scheme, "").partition(":")
    return getattr(import_module(module), name) if module else None


def _installed(scheme: str, verb: str) -> Any:
    """The class that a package brings for a scheme, where it can do that. Raises Refused if it cannot be loaded."""
    if scheme in {*_SOURCES, *_TARGETS}:
        return None
    from importlib.metadata import entry_points  # noqa: PLC0415 - only an unknown scheme pays for it

    for entry in entry_points(group=SCHEME_ENTRY_POINTS, name=scheme):
        try:
            maker = entry.load()
        except Exception as err:  # whatever a package does when it is imported
            raise Refused(
                f"The package for the scheme {scheme!r} cannot be loaded ({entry.value}: {err}). Mend or remove it.",
                code=Code.UNSUPPORTED,
            ) from err
        return maker if hasattr(maker, verb) else None
    return None


def _known(built_in: Mapping[str, str], verb: str) -> tuple[str, ...]:
    from importlib.metadata import entry_points  # noqa: PLC0415 - as above

    found = set(built_in)
    for name in entry_points(group=SCHEME_ENTRY_POINTS).names:
        with suppress(Refused):  # who asks for that scheme is told
            found |= {name} if _installed(name, verb) else set()
    return tuple(sorted(found))


def _unknown(uri: Uri, use: str, names: tuple[str, ...]) -> BadRequest:
    return BadRequest(
        f"The scheme {uri.scheme!r} of {uri} is unknown. Images can be {use} these schemes: {', '.join(names)}."
    )


def check_source(uri: Uri, policy: ImagePolicy) -> None:
    """Refuse at once what fetching would refuse later, as far as the URI shows it."""
    source(uri, policy).check(uri)


def check_target(uri: Uri, policy: ImagePolicy) -> None:
    """Refuse at once what saving would refuse later, as far as the URI shows it."""
    if uri.sha256:
        raise Refused(f"{uri} says a digest: a disk that is still to be written has none. Leave out the part after #.")
    save_form(uri)
    target(place(uri), policy).check(place(uri), write=True)
