"""Facts about the host: the name of this boot, the user of QEMU, and whether the host is shutting down."""

from __future__ import annotations

import grp
import pwd
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SYSTEMD: Final = Path("/run/systemd/system")
"""Exists if systemd is the init: sd_booted(3)."""
_ANSWER_S: Final = 5.0
_INTERFACES: Final = Path("/sys/class/net")


def boot_id() -> str:
    """Return the name of this boot of the host; empty if the kernel has none."""
    with suppress(OSError):
        return BOOT_ID.read_text("ascii").strip()
    return ""


class User(NamedTuple):
    """The ids of a user."""

    uid: int
    gid: int
    """Of the group that has the user's name. It has no other members: those of its primary group, `kvm`, are people."""


@cache
def user(name: str) -> User | None:
    """Return the ids of a user of this host, or None if there is no such user."""
    try:
        found = pwd.getpwnam(name)
    except KeyError:
        return None
    with suppress(KeyError):
        return User(found.pw_uid, grp.getgrnam(name).gr_gid)
    return User(found.pw_uid, found.pw_gid)


def stopping() -> bool:
    """Return whether systemd is shutting the host down. Without systemd as the init it is always False."""
    if not _SYSTEMD.exists():
        return False
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["systemctl", "is-system-running"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_ANSWER_S)
        return result.stdout.strip() == "stopping"
    return False


def has_interface(name: str) -> bool:
    """Return whether this host has a network interface of this name, such as a bridge."""
    return (_INTERFACES / name).exists()
