"""What may be written of a VM: names, software, what guests are told, schemes of URIs. Masters and workers share it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$"
"""Names of VMs. Narrower than libvirt's rule, which allows `-rf`, `.` and 300 characters."""

NAME: Final = re.compile(NAME_PATTERN)
SOFTWARE_PATTERN: Final = (
    r"^[A-Za-z0-9](?:[A-Za-z0-9.+_:-]{0,98}[A-Za-z0-9+_])?(?:=[A-Za-z0-9*][A-Za-z0-9.+:~_*-]{0,63})?$"
)
"""One entry of `soft_list`: the name of a package, `name=1.22*` where its version matters.

It begins with no dash and ends with none: it can be no option, and apt would take `name-` for a wish to remove it.
"""

SOFTWARE: Final = re.compile(SOFTWARE_PATTERN)
MAX_SOFTWARE: Final = 200
"""How many entries a `soft_list` may have."""

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
        re.compile(
            r"(?:ssh|ecdsa|sk)-[a-z0-9@.-]{1,60} [A-Za-z0-9+/]{16,8000}={0,3}(?: [A-Za-z0-9@._+-]{1,200})?",
        ),
        50,
        "is no public key. Give lines such as `ssh-ed25519 AAAA… me@host`, without options",
    ),
    "minion_master": (
        re.compile(r"[A-Za-z0-9][A-Za-z0-9.:-]{0,253}"),
        1,
        "is no host name or address",
    ),
}
"""What a guest is told becomes words of commands and of files in it: nothing else may be smuggled in.

parameter -> pattern of one entry, how many there may be, what is wrong with any other
"""
SOURCE_SCHEMES: Final = ("file", "http", "https", "s3", "salt", "sftp")
"""Schemes of the URIs that images can be fetched from; a worker may allow fewer. `blank:SIZE` is made, not fetched."""

TARGET_SCHEMES: Final = ("file", "http", "https", "s3", "sftp")
"""Schemes of the URIs that disks can be saved to."""

SCHEME_ENTRY_POINTS: Final = "saltern.schemes"
"""Group of entry points of packages that bring more schemes. Both a worker and its master must have the package."""
