"""The one parser of URIs of images, of documents, and of places that disks are saved to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final
from urllib.parse import parse_qsl, unquote, urlsplit

import msgspec

MAX_URI: Final = 2048
_SHA256: Final = re.compile(r"sha256=([0-9a-f]{64})")
_BLANK: Final = re.compile(r"blank:([1-9][0-9]{0,6})([MGT])")
_FACTOR: Final = {"M": 1 << 20, "G": 1 << 30, "T": 1 << 40}
_OPTIONS: Final[Mapping[str, tuple[str, ...]]] = {"format": ("qcow2", "raw"), "compress": ("zstd",)}
_FORBIDDEN: Final = re.compile(r"[\x00-\x20\x7f\\]")


class InvalidUri(ValueError):
    """The text is no URI. The message never repeats a part of it, which may be a password."""


class Uri(msgspec.Struct, frozen=True, omit_defaults=True):
    """The parts of a URI."""

    text: str
    """The URI without its fragment. The cache knows an image by it."""
    scheme: str
    netloc: str
    path: str
    """Decoded. For `file:` it begins with a slash."""
    sha256: str | None = None
    query: str = ""
    """The part after the question mark: a part of the name for sources, options for targets (`save_form`)."""

    def __str__(self) -> str:
        """Return the URI as it may be shown: without a user or password in it."""
        if "@" not in self.netloc:
            return self.text
        return self.text.replace(self.netloc, "***@" + self.netloc.rpartition("@")[2], 1)


class Form(msgspec.Struct, frozen=True):
    """The format in which a disk is saved. Records of newer workers may have forms that are unknown here."""

    format: str = "qcow2"
    compress: str | None = None

    @property
    def suffix(self) -> str:
        """The ending of a file of this form. A qcow2 with compressed clusters is still a qcow2."""
        return "raw.zst" if self.format == "raw" and self.compress else self.format


class SaveTarget(msgspec.Struct, frozen=True):
    """The place that a disk is saved to when its VM halts, and the form that it gets there."""

    uri: Uri
    form: Form = Form()


def shown(text: str) -> str:
    """Return a text that a user gave as a URI, without any user or password in it: up to the last @, in linear time.

    A password may contain anything, also an @.
    """
    begin, end = text.find("//"), text.rfind("@")
    return f"{text[:begin]}//***{text[end:]}" if 0 <= begin <= end - 2 else text


def parse(text: str) -> Uri:
    """Return the parts of a URI. Raises InvalidUri that says what is wrong.

    `URI#sha256=<64 hex digits>` accepts only the bytes with this digest. Source: RFC 3986.
    """
    if not 0 < len(text) <= MAX_URI:
        raise InvalidUri(f"a URI is not empty and has at most {MAX_URI} characters; this one has {len(text)}")
    if _FORBIDDEN.search(text):
        raise InvalidUri("a URI has no blanks, no control characters and no backslashes; write a blank as %20")
    try:
        parts = urlsplit(text)
        _ = parts.port
    except ValueError:
        # Python's message repeats a part of the URI, which may be a part of a password.
        raise InvalidUri("this is not a URI: behind // comes HOST or HOST:PORT") from None
    if not parts.scheme:
        raise InvalidUri("it has no scheme; write a file on the worker as file:/path, and others as https://HOST/PATH")
    if parts.scheme == "blank" and blank_size(text) is None:
        raise InvalidUri("give the size of a blank disk as blank:20G (M, G or T)")
    digest = _SHA256.fullmatch(parts.fragment)
    if parts.fragment and not digest:
        raise InvalidUri("after # only a digest is known: #sha256= and 64 hexadecimal digits")
    return Uri(
        text=text.partition("#")[0],
        scheme=parts.scheme,
        netloc=parts.netloc,
        path=unquote(parts.path),
        sha256=digest[1] if digest else None,
        query=parts.query,
    )


def blank_size(text: str) -> int | None:
    """Return the bytes of a `blank:20G` disk. Return None for any other text."""
    match = _BLANK.fullmatch(text)
    return int(match[1]) * _FACTOR[match[2]] if match else None


def save_target(text: str) -> SaveTarget:
    """Return the place and form that a `*_save_to` names. Raises InvalidUri."""
    uri = parse(text)
    return SaveTarget(uri, save_form(uri))


def save_form(uri: Uri) -> Form:
    """Return the form that a target asks for by `?format=raw|qcow2` and `?compress=zstd`.

    The whole query of a target is options, for every scheme, and no part of the file's name. Raises InvalidUri for
    unknown options.
    """
    pairs = parse_qsl(uri.query, keep_blank_values=True)
    options = dict(pairs)
    is_list = len(options) == len(pairs) and bool(uri.query) == bool(pairs)
    if not is_list or any(value not in _OPTIONS.get(name, ()) for name, value in pairs):
        raise InvalidUri(
            "the options after ? are not understood. A disk is saved as qcow2; write ?format=raw for a raw disk, "
            "?compress=zstd for a smaller one, ?format=raw&compress=zstd for both"
        )
    return Form(**options)


def place(uri: Uri) -> Uri:
    """Return a target without its options."""
    return msgspec.structs.replace(uri, text=uri.text.partition("?")[0], query="")
