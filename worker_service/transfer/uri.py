"""One parser for image URIs, so that nobody else takes one apart."""

from __future__ import annotations

import re
from typing import Final, Literal
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

from worker_service.core.errors import BadRequest

_SHA256: Final = re.compile(r"^[0-9a-f]{64}$")
_SIZE: Final = re.compile(r"^([1-9][0-9]{0,6})([MGT])$")
_FACTOR: Final = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_USER: Final = re.compile(r"//.*@", re.DOTALL)
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\\]")


class Uri(msgspec.Struct, frozen=True):
    """An image URI taken apart."""

    text: str
    """The URI without its fragment: what a cache remembers it by."""
    scheme: str
    netloc: str
    path: str
    """Decoded, for `file:`; begins with a slash."""
    sha256: str | None = None
    query: str = ""
    """What follows the question mark: part of the name for `http:` sources, options for targets (`save_form`)."""

    def __str__(self) -> str:
        """The URI as it may be shown: without a password in it."""
        if "@" not in self.netloc:
            return self.text
        return self.text.replace(self.netloc, "***@" + self.netloc.rpartition("@")[2], 1)


def shown(text: str) -> str:
    """What was given as a URI, and may be none, as it may be shown: without whoever is named in it."""
    return _USER.sub("//***@", text)


def parse(text: str) -> Uri:
    """Take a URI apart; raises BadRequest that says what is wrong with it.

    `URI#sha256=<64 hex digits>` demands those very bytes. Source: RFC 3986.
    """
    if not text or len(text) > 2048 or _FORBIDDEN.search(text):
        raise BadRequest(
            f"{shown(text)[:80]!r} is no URI: it is empty, too long, or has blanks, control characters or backslashes. "
            "Write it like file:///srv/images/debian.qcow2 or https://host/debian.qcow2."
        )
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        # Why, in Python's words, repeats a part of it, which may be one of a password.
        raise BadRequest(f"{shown(text)!r} is no URI: behind // comes HOST or HOST:PORT. Correct it.") from None
    if not parts.scheme:
        raise BadRequest(f"{shown(text)!r} has no scheme. Write file://PATH for a file on the worker, or https://….")
    sha256 = None
    if parts.fragment:
        kind, _, sha256 = parts.fragment.partition("=")
        if kind != "sha256" or not _SHA256.match(sha256):
            raise BadRequest(
                f"The part after # of {shown(text)!r} is not understood. Write #sha256= and 64 hex digits."
            )
    return Uri(
        text=text.partition("#")[0],
        scheme=parts.scheme.lower(),
        netloc=parts.netloc,
        path=unquote(parts.path),
        sha256=sha256,
        query=parts.query,
    )


class Form(msgspec.Struct, frozen=True):
    """What a disk is saved as."""

    format: Literal["qcow2", "raw"] = "qcow2"
    compress: Literal["zstd"] | None = None

    @property
    def suffix(self) -> str:
        """The ending that says it: `qcow2`, `raw`, `raw.zst`. Compressed clusters are still a qcow2."""
        return "raw.zst" if self.format == "raw" and self.compress else self.format


def save_form(uri: Uri) -> Form:
    """The form that a target asks for: `?format=raw|qcow2` and `?compress=zstd`; raises BadRequest for anything else.

    Every query of a target is options, for every scheme: none of it becomes part of the file's name.
    """
    pairs = parse_qsl(uri.query, keep_blank_values=True)
    options = dict(pairs)
    try:
        if len(options) != len(pairs) or bool(uri.query) != bool(pairs):
            raise msgspec.ValidationError("an option is given twice, or is none")
        if unknown := sorted(options.keys() - set(Form.__struct_fields__)):
            raise msgspec.ValidationError(f"nobody knows {', '.join(unknown)}")
        return msgspec.convert(options, Form)
    except msgspec.ValidationError as err:
        raise BadRequest(
            f"The options of {uri} are not understood: {err}. A disk is saved as qcow2; write ?format=raw for a raw "
            "disk, ?compress=zstd for a smaller one, ?format=raw&compress=zstd for both."
        ) from None


def place(uri: Uri) -> Uri:
    """A target without its options: where the bytes go."""
    return msgspec.structs.replace(uri, text=uri.text.partition("?")[0], query="")


def blank_size(text: str) -> int | None:
    """Bytes of a `blank:20G` disk, None for any other URI; raises BadRequest for a size that is none."""
    if not text.startswith("blank:"):
        return None
    match = _SIZE.match(text.removeprefix("blank:"))
    if not match:
        raise BadRequest(f"{text!r} has no size. Write it like blank:512M, blank:20G or blank:1T.")
    return int(match[1]) * _FACTOR[match[2]]
