"""Patterns that masters and workers share: names, software, parameters of guests, schemes of URIs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

NAME_PATTERN: Final = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"
"""Names of VMs. Narrower than libvirt's rule, which allows `-rf`, `.` and 300 characters."""

NAME: Final = re.compile(NAME_PATTERN)
OWNER: Final = re.compile(r"[a-z][a-z0-9._-]{0,62}")
"""Owners of VMs: the names of accounts at the master. Each one is a safe name of a folder: no slash, no `..`."""
_UUID_DIGITS: Final = re.compile(r"[0-9A-Fa-f]{32}")


def is_like_uuid(name: str) -> bool:
    """Return whether people and libvirt read a name as a uuid: 32 hexadecimal digits, with dashes anywhere."""
    return _UUID_DIGITS.fullmatch(name.replace("-", "")) is not None


SOFTWARE_PATTERN: Final = (
    r"[A-Za-z0-9](?:[A-Za-z0-9.+_:-]{0,98}[A-Za-z0-9+_])?(?:=[A-Za-z0-9*][A-Za-z0-9.+:~_*-]{0,63})?"
)
"""One entry of `soft_list`: the name of a package, `name=1.22*` where its version matters.

It begins and ends without a dash: it cannot be an option, and apt would remove a package given as `name-`.
"""

SOFTWARE: Final = re.compile(SOFTWARE_PATTERN)
MAX_SOFTWARE: Final = 200
"""The limit of entries in a `soft_list`."""

_KEY_TYPE: Final = r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60}"
_LABEL: Final = r"[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
GUEST_PARAMETERS: Final[Mapping[str, tuple[re.Pattern[str], int, str]]] = {
    "soft_list": (
        SOFTWARE,
        MAX_SOFTWARE,
        "is no name of a package. Give a name such as nginx, or name=1.22* for a version",
    ),
    "hostname": (
        re.compile(rf"(?!.{{254}}){_LABEL}(?:\.{_LABEL})*"),
        1,
        "is no host name. Use letters, digits, dashes and dots",
    ),
    "ssh_keys": (
        re.compile(rf"{_KEY_TYPE} [A-Za-z0-9+/]{{16,8000}}={{0,3}}(?: .{{1,200}})?"),
        50,
        "is no public key. Give lines such as `ssh-ed25519 AAAA… me at home`, without options",
    ),
    "minion_master": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,253}"),
        1,
        "is no host name or address",
    ),
}
"""parameter -> pattern of one entry, the limit of entries, the error for other entries

These values become words of commands and files in the guest, so the patterns allow no injection. `is_guest_entry` has
the whole rule.
"""
GUEST_LISTS: Final = ("soft_list", "ssh_keys")
"""The parameters of the guest that have several entries."""

_NEXT_KEY: Final = re.compile(rf",(?=[ \t]*{_KEY_TYPE}[ \t]+[A-Za-z0-9+/]{{16}})")


def guest_entries(parameter: str, given: str | Iterable[str]) -> list[str]:
    """Return the entries of one of `GUEST_LISTS`, given as a text or one by one. They are not checked yet.

    A text has commas between them. A public key ends at its line or at a comma before another key, because its comment
    may have commas too. It gets one blank between its three parts, as sshd reads them.
    """
    if parameter != "ssh_keys":
        return [each.strip() for each in given.split(",") if each.strip()] if isinstance(given, str) else list(given)
    if isinstance(given, str):
        given = [key for line in given.splitlines() for key in _NEXT_KEY.split(line) if key.strip()]
    return [" ".join(key.split(None, 2)).rstrip() for key in given]


def is_guest_entry(parameter: str, entry: str) -> bool:
    """Return whether this is an allowed entry of one of `GUEST_PARAMETERS`."""
    return entry.isprintable() and GUEST_PARAMETERS[parameter][0].fullmatch(entry) is not None


SOURCE_SCHEMES: Final = ("file", "http", "https", "s3", "salt", "sftp")
"""Schemes of the URIs that images can be fetched from. A worker may allow fewer. Blank disks are made, not fetched."""

TARGET_SCHEMES: Final = ("file", "http", "https", "s3", "sftp")
"""Schemes of the URIs that disks can be saved to."""

_ABOUT_ROOM: Final = (" MiB are free", " with overcommit are free")


def names_room(text: str) -> bool:
    """Return whether a message of a worker says how much room is left on it."""
    return any(words in text for words in _ABOUT_ROOM)


SCHEME_ENTRY_POINTS: Final = "saltern.schemes"
"""Group of entry points of packages that add schemes. A worker and its master must both have such a package."""
