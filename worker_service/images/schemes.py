"""The registry of URI schemes. A new scheme is one class here, or a package with an entry point `saltern.schemes`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from worker_service.errors import BadRequest, Refused
from worker_service.images.uri import Uri, place, save_form
from worker_service.settings import Images

Report = Callable[[int, int | None], None]
"""Called with bytes done and bytes in all; raises to interrupt the transfer."""


class Head(msgspec.Struct, frozen=True):
    """What a source says of an image before it is read. `size` in bytes."""

    size: int | None
    validator: str | None
    """Changes whenever the bytes change (an ETag, an inode with its time); None where the source has none."""
    resumable: bool = False
    """Whether reading may go on in the middle: only under a strong validator."""


class Source(Protocol):
    """Reads images of one scheme. Raises TransferFailed, Refused."""

    def check(self, uri: Uri) -> None:
        """Refuse what the site's policy forbids, as far as the URI alone shows it."""

    def head(self, uri: Uri) -> Head:
        """Size and validator, before any byte is read."""

    def read(self, uri: Uri, offset: int, head: Head) -> Iterator[bytes]:
        """The bytes from an offset on."""


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

    def discard(self, uri: Uri, key: str) -> None:
        """Remove what unfinished tries of this VM left behind."""


# Modules are named, not imported: a helper that copies a file does not pay for an HTTP client.
_SOURCES: Final[Mapping[str, str]] = {
    "file": "worker_service.images.file:Files",
    "http": "worker_service.images.http:Http",
    "https": "worker_service.images.http:Http",
}
_TARGETS: Final[Mapping[str, str]] = {
    "file": "worker_service.images.file:Files",
    "http": "worker_service.images.http_put:Put",
    "https": "worker_service.images.http_put:Put",
}


def known_sources() -> tuple[str, ...]:
    """The schemes that images can be fetched from."""
    return tuple(sorted(_SOURCES))


def known_targets() -> tuple[str, ...]:
    """The schemes that disks can be saved to."""
    return tuple(sorted(_TARGETS))


def source(uri: Uri, policy: Images) -> Source:
    """The reader for a URI; raises BadRequest for a scheme that nobody knows."""
    reader: Source = _make(_SOURCES, uri, policy, "fetched from")
    return reader


def target(uri: Uri, policy: Images) -> Target:
    """The writer for a URI; raises BadRequest for a scheme that nobody can write."""
    writer: Target = _make(_TARGETS, uri, policy, "saved to")
    return writer


def _make(known: Mapping[str, str], uri: Uri, policy: Images, use: str) -> Any:
    try:
        module, _, name = known[uri.scheme].partition(":")
    except KeyError:
        names = ", ".join(sorted(known))
        raise BadRequest(
            f"The scheme {uri.scheme!r} of {uri} is unknown. Images can be {use} these schemes: {names}."
        ) from None
    return getattr(import_module(module), name)(policy)


def check_source(uri: Uri, policy: Images) -> None:
    """Refuse at once what fetching would refuse later, as far as the URI shows it."""
    source(uri, policy).check(uri)


def check_target(uri: Uri, policy: Images) -> None:
    """Refuse at once what saving would refuse later, as far as the URI shows it."""
    if uri.sha256:
        raise Refused(f"{uri} says a digest: a disk that is still to be written has none. Leave out the part after #.")
    save_form(uri)
    target(place(uri), policy).check(place(uri), write=True)
