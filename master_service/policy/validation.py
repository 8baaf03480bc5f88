"""Whether the parameters of a VM make sense: the master's duty, as workers assume that they do (contract). Pure.

Each check returns the value or raises ValueError with a sentence: what is wrong, and what is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final
from urllib.parse import SplitResult, urlsplit

from worker_service.contract import GUEST_PARAMETERS, NAME, SCHEME_ENTRY_POINTS, SOURCE_SCHEMES, TARGET_SCHEMES

MAX_CPUS: Final = 512
MIN_MEM_MIB: Final = 4
MAX_MEM_MIB: Final = 16 * 1024 * 1024
_USER: Final = re.compile(r"//.*@", re.DOTALL)
"""Up to the last @: a password may have anything in it."""

_BLANK: Final = re.compile(r"^[1-9][0-9]{0,6}[MGT]$")
_DIGEST: Final = re.compile(r"^sha256=[0-9a-f]{64}$")
_NETWORK: Final = re.compile(r"^(?:user|none|(?:network|bridge)=[A-Za-z0-9][A-Za-z0-9._-]{0,62})$")
_MAX_URI: Final = 2048
MAX_LABELS: Final = 32
_LABEL: Final = re.compile(r"^[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$")
_MAX_LABEL_VALUE: Final = 255


def shown(given: str) -> str:
    """What somebody gave, as it may be repeated: without whoever a URI names, as answers are logged by clients, too."""
    return _USER.sub("//***@", given)


def validate_name(value: str) -> str:
    """The name of a VM."""
    if not NAME.match(value) or value != value.strip():
        raise ValueError("use 1 to 63 letters, digits, dots, dashes or underscores; the first a letter or a digit")
    return value


def validate_image_uri(value: str) -> str:
    """The URI of a disk image, or `blank:20G`."""
    parts = _split(value, (*SOURCE_SCHEMES, "blank"))
    if parts.scheme == "blank":
        if not _BLANK.match(parts.path):
            raise ValueError("give the size of a blank disk as blank:20G (M, G or T)")
        return value
    _require_place(parts)
    if parts.fragment and not _DIGEST.match(parts.fragment):
        raise ValueError("after # only a digest is known: #sha256= and 64 hexadecimal digits")
    return value


def validate_cd_uri(value: str) -> str:
    """The URI of a CD image; empty: no disc."""
    if value.startswith("blank:"):
        raise ValueError("a CD cannot be blank; give the URI of an ISO image, or leave it out")
    return validate_image_uri(value) if value else value


def validate_save_uri(value: str) -> str:
    """The URI to save a disk to; empty: the disk is discarded when the VM halts."""
    if not value:
        return value
    parts = _split(value, TARGET_SCHEMES)
    _require_place(parts)
    if parts.fragment:
        raise ValueError("a place to save to has no digest; leave out what follows #")
    return value


def validate_network(value: str) -> str:
    """How a VM is connected."""
    if not _NETWORK.match(value):
        raise ValueError("use user, none, network=NAME or bridge=NAME")
    return value


def guest_word_validator(parameter: str) -> Callable[[str], str]:
    """The check of one entry of what a guest is told: soft_list, hostname, ssh_keys, minion_master."""
    pattern, _, wrong = GUEST_PARAMETERS[parameter]

    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError(f"{shown(value)[:40]!r} {wrong}")
        return value

    return check


def validate_user_data(value: str) -> str:
    """The URI of a cloud-config document."""
    if value.lstrip().startswith("#"):
        raise ValueError("give the URI of the document, not the document: what is in a request is shown to many")
    if value.startswith("blank:"):
        raise ValueError("a document cannot be blank; leave user_data out")
    return validate_image_uri(value)


def validate_labels(value: dict[str, str]) -> dict[str, str]:
    """Words of the user about a VM, to find it by."""
    if len(value) > MAX_LABELS:
        raise ValueError(f"a VM has at most {MAX_LABELS} labels; these are {len(value)}")
    for key, word in value.items():
        if not _LABEL.match(key):
            raise ValueError(
                f"{shown(key)!r} is no name of a label; use 1 to 63 letters, digits and . _ / - in between"
            )
        if len(word) > _MAX_LABEL_VALUE or not word.isprintable():
            raise ValueError(f"the value of {key} is too long or not printable; at most {_MAX_LABEL_VALUE} characters")
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
        # Its own words repeat a part of the URI, which may be one of a password.
        raise ValueError("is not a URI: behind // comes HOST or HOST:PORT") from err
    if parts.scheme not in schemes and parts.scheme not in entry_points(group=SCHEME_ENTRY_POINTS).names:
        known = ", ".join(schemes)
        said = f"unknown scheme {parts.scheme!r}" if parts.scheme else "it has no scheme"
        raise ValueError(f"{said}; known are {known}. A local file is file:/path")
    if "@" in parts.netloc:  # a user alone may be a token
        raise ValueError(
            "no passwords in a URI, and no user: it is shown and stored; the worker's settings say who it is"
        )
    return parts


def _require_place(parts: SplitResult) -> None:
    """Each scheme needs a whole path, and all but file a host, a bucket or a folder, too."""
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost"):
            raise ValueError("file: means a file on the worker; write file:/path or file:///path")
        if not parts.path.startswith("/") or parts.path.endswith("/"):
            raise ValueError("file: needs a whole path to a file, such as file:/srv/images/debian.qcow2")
    elif parts.scheme == "salt":
        if not parts.netloc:
            raise ValueError("salt: needs a path on Salt's file server, such as salt://images/debian.qcow2")
    elif not parts.netloc or not parts.path.strip("/"):
        place = "bucket" if parts.scheme == "s3" else "host"
        raise ValueError(
            f"{parts.scheme}: needs a {place} and a path, such as {parts.scheme}://{place.upper()}/debian.qcow2"
        )
