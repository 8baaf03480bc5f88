"""Validate the parameters of a VM. The contract gives this duty to the master; workers check only their safety. Pure.

Each function returns the value, or raises ValueError that says what is wrong and what is right.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Final

from worker_service.contract import (
    GUEST_PARAMETERS,
    KEEP,
    NAME,
    SCHEME_ENTRY_POINTS,
    SOURCE_SCHEMES,
    TARGET_SCHEMES,
    guest_entries,
    is_guest_entry,
    is_like_uuid,
)
from worker_service.contract.uri import Uri, parse, save_form
from worker_service.contract.uri_secrets import ADVICE, has_secret, shown
from worker_service.contract.words import refusal_of_name

MAX_CPUS: Final = 512
MIN_MEM_MIB: Final = 4
MAX_MEM_MIB: Final = 16 * 1024 * 1024
_NETWORK: Final = re.compile(r"user|none|(?:network|bridge)=[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
MAX_LABELS: Final = 32
_LABEL: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?")
_MAX_LABEL_VALUE: Final = 255


def validate_name(value: str) -> str:
    """Check the name of a new VM. Paths take a name or a uuid, and Salt and files of VMs take a word of YAML."""
    if not NAME.fullmatch(value):
        raise ValueError("use 1 to 63 letters, digits, dots, dashes or underscores; the first a letter or a digit")
    if is_like_uuid(value):
        raise ValueError("this is like the uuid of a VM, and would be taken for one; use another name")
    if why := refusal_of_name(value):
        raise ValueError(why.removesuffix("."))
    return value


def validate_image_uri(value: str) -> str:
    """Check the URI of a disk image, or `blank:20G`."""
    _parse(value, (*SOURCE_SCHEMES, "blank"))
    return value


def validate_cd_uri(value: str) -> str:
    """Check the URI of a CD image; empty: no CD."""
    if value.startswith("blank:"):
        raise ValueError("a CD cannot be blank; give the URI of an ISO image, or leave it out")
    return validate_image_uri(value) if value else value


def validate_save_uri(value: str) -> str:
    """Check where a disk is saved to; empty: it is discarded when the VM halts; `keep`: it stays on its worker."""
    if value in ("", KEEP):
        return value
    uri = _parse(value, TARGET_SCHEMES)
    if uri.sha256:
        raise ValueError("a place to save to has no digest; leave out the part after #")
    save_form(uri)
    return value


def validate_network(value: str) -> str:
    """Check the network of a VM."""
    if not _NETWORK.fullmatch(value):
        raise ValueError("use user, none, network=NAME or bridge=NAME")
    return value


def guest_word_validator(parameter: str) -> Callable[[str], str]:
    """Return the check of one entry of a parameter for the guest: soft_list, hostname, ssh_keys, minion_master."""
    _, _, wrong = GUEST_PARAMETERS[parameter]

    def check(value: str) -> str:
        (entry,) = guest_entries(parameter, [value])
        if not is_guest_entry(parameter, entry):
            raise ValueError(f"{shown(entry)[:40]!r} {wrong}")
        return entry

    return check


def validate_user_data(value: str) -> str:
    """Check the URI of a cloud-config document."""
    if value.lstrip().startswith("#"):
        raise ValueError("give the URI of the document, not the document: all viewers of the VM see its parameters")
    if value.startswith("blank:"):
        raise ValueError("a document cannot be blank; leave user_data out")
    return validate_image_uri(value)


def validate_labels(value: dict[str, str]) -> dict[str, str]:
    """Check the labels by which a user finds a VM."""
    if len(value) > MAX_LABELS:
        raise ValueError(f"a VM has at most {MAX_LABELS} labels; these are {len(value)}")
    for key, text in value.items():
        if not _LABEL.fullmatch(key):
            raise ValueError(
                f"{shown(key)!r} is no name of a label; use 1 to 63 letters, digits and . _ / - in between"
            )
        if len(text) > _MAX_LABEL_VALUE or not text.isprintable():
            raise ValueError(f"the value of {key} is too long or not printable; at most {_MAX_LABEL_VALUE} characters")
    return value


def validate_text(value: str) -> str:
    """Check a text of a user that is stored and shown to others: the label of a token, the id of a worker."""
    if not value.isprintable():
        raise ValueError("use printable characters only: no control characters, line ends or invisible ones")
    return value


def _parse(value: str, schemes: tuple[str, ...]) -> Uri:
    """Return the parts of a URI of one of these schemes, or of one that an installed package adds."""
    if not value.isprintable():
        raise ValueError("a URI has no control characters and no invisible ones; write them as %XX")
    uri = parse(value)
    if uri.scheme not in schemes and uri.scheme not in entry_points(group=SCHEME_ENTRY_POINTS).names:
        raise ValueError(f"unknown scheme {uri.scheme!r}; known are {', '.join(schemes)}. A local file is file:/path")
    if "@" in uri.netloc or has_secret(uri.text):  # a user alone may be a token
        raise ValueError(f"no passwords in a URI, and no user, signature or token. {ADVICE}")
    if uri.scheme != "blank":
        _require_place(uri)
    return uri


def _require_place(uri: Uri) -> None:
    """Raise ValueError unless the path is complete, and a host, bucket or folder is given where the scheme has one."""
    if uri.scheme == "file":
        if uri.netloc not in ("", "localhost"):
            raise ValueError("file: means a file on the worker; write file:/path or file:///path")
        if not uri.path.startswith("/") or uri.path.endswith("/"):
            raise ValueError("file: needs a whole path to a file, such as file:/srv/images/debian.qcow2")
    elif uri.scheme == "salt":
        if not uri.netloc:
            raise ValueError("salt: needs a path on Salt's file server, such as salt://images/debian.qcow2")
    elif not uri.netloc or not uri.path.strip("/"):
        place = "bucket" if uri.scheme == "s3" else "host"
        raise ValueError(
            f"{uri.scheme}: needs a {place} and a path, such as {uri.scheme}://{place.upper()}/debian.qcow2"
        )
