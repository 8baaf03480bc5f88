"""Whether some process has a disk image open, by the locks of QEMU and its tools. libvirt knows only its own processes.

They take a shared lock on one byte per right that they use. Source: block/file-posix.c in QEMU.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from typing import Final

_FLOCK: Final = struct.Struct("hhqqi4x")  # type, whence, start, length, pid
_RIGHTS_AT: Final = 100
"""The byte of the first right, to read. The next one is the right to write."""
_RIGHTS: Final = 5
_WRITE: Final = 1


def is_written(path: Path) -> bool:
    """Return whether a process may write to an image now. A missing file is not written."""
    return _is_locked(path, _RIGHTS_AT + _WRITE, 1)


def is_used(path: Path) -> bool:
    """Return whether a process reads an image now or may write to it."""
    return _is_locked(path, _RIGHTS_AT, _RIGHTS)


def _is_locked(path: Path, start: int, length: int) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as err:
        if err.errno in (errno.ENOENT, errno.ELOOP, errno.ENXIO):  # missing, or no file that QEMU could have locked
            return False
        raise
    try:
        probe = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, start, length, 0)
        found = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, probe))
        return int(found[0]) != fcntl.F_UNLCK
    finally:
        os.close(fd)
