"""Whether the parameters of a VM make sense: the master's duty, as workers assume that they do (contract). Pure.

Each check returns the value or raises ValueError with a sentence: what is wrong, and what is right.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, urlsplit

from worker_service.contract import NAME

SCHEMES: Final = ("file", "http", "https", "blank")
"""Where an image can come from; a worker may allow fewer."""

SAVE_SCHEMES: Final = ("file", "http", "https")
"""Where a disk can be saved to."""

MAX_CPUS: Final = 512
MIN_MEM_MIB: Final = 4
MAX_MEM_MIB: Final = 16 * 1024 * 1024
_BLANK: Final = re.compile(r"^[1-9][0-9]{0,6}[MGT]$")
_DIGEST: Final = re.compile(r"^sha256=[0-9a-f]{64}$")
_NETWORK: Final = re.compile(r"^(?:user|none|(?:network|bridge)=[A-Za-z0-9][A-Za-z0-9._-]{0,62})$")
_PACKAGE: Final = re.compile(r"^[A-Za-z0-9][A-Za-z0-9.+:~=_-]{0,127}$")
_MAX_URI: Final = 2048


def name(value: str) -> str:
    """The name of a VM."""
    if not NAME.match(value) or value != value.strip():
        raise ValueError("use 1 to 63 letters, digits, dots, dashes or underscores; the first a letter or a digit")
    return value


def image(value: str) -> str:
    """The URI of a disk image, or `blank:20G`."""
    parts = _split(value, SCHEMES)
    if parts.scheme == "blank":
        if not _BLANK.match(parts.path):
            raise ValueError("give the size of a blank disk as blank:20G (M, G or T)")
        return value
    _demand_place(parts)
    if parts.fragment and not _DIGEST.match(parts.fragment):
        raise ValueError("after # only a digest is known: #sha256= and 64 hexadecimal digits")
    return value


def cd(value: str) -> str:
    """The URI of a CD image; empty: no disc."""
    if value.startswith("blank:"):
        raise ValueError("a CD cannot be blank; give the URI of an ISO image, or leave it out")
    return image(value) if value else value


def save_to(value: str) -> str:
    """The URI to save a disk to; empty: the disk is discarded when the VM halts."""
    if not value:
        return value
    parts = _split(value, SAVE_SCHEMES)
    _demand_place(parts)
    if parts.fragment:
        raise ValueError("a place to save to has no digest; leave out what follows #")
    return value


def network(value: str) -> str:
    """How a VM is connected."""
    if not _NETWORK.match(value):
        raise ValueError("use user, none, network=NAME or bridge=NAME")
    return value


def package(value: str) -> str:
    """One entry of soft_list."""
    if not _PACKAGE.match(value):
        raise ValueError(f"{value!r} is no name of a package; use letters, digits and . + : ~ = _ -")
    return value


def _split(value: str, schemes: tuple[str, ...]) -> SplitResult:
    if len(value) > _MAX_URI:
        raise ValueError(f"a URI has at most {_MAX_URI} characters; this one has {len(value)}")
    if not value.isprintable() or " " in value:
        raise ValueError("a URI has no blanks and no control characters; write a blank as %20")
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError as err:
        raise ValueError(f"is not a URI: {err}") from err
    if parts.scheme not in schemes:
        known = ", ".join(schemes)
        said = f"unknown scheme {parts.scheme!r}" if parts.scheme else "it has no scheme"
        raise ValueError(f"{said}; known are {known}. A local file is file:/path")
    if parts.password:
        raise ValueError("no passwords in a URI: it is shown to people and stored; configure them on the worker")
    return parts


def _demand_place(parts: SplitResult) -> None:
    """Each scheme needs a whole path, and all but file a host, too."""
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError("file: means a file on the worker; write file:/path or file:///path")
        if not parts.path.startswith("/") or parts.path.endswith("/"):
            raise ValueError("file: needs a whole path to a file, such as file:/srv/images/debian.qcow2")
    elif not parts.netloc or not parts.path.strip("/"):
        raise ValueError(f"{parts.scheme}: needs a host and a path, such as {parts.scheme}://HOST/debian.qcow2")
