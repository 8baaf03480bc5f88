"""Space reserved for records that must be written although guests have filled the data root: halts, destroys, failures.

reserve/<number>    files with allocated blocks; one becomes the next version of a record that finds no free space

The blocks are renamed into place and never freed: a guest would take freed blocks before the record is written. New VMs
get no space from the reserve; their start is refused.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.fs import atomic_files

FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
_FILES: Final = 64
_BYTES: Final = 64 << 10
_ROOM: Final = 4 * _FILES * _BYTES
"""Free space in bytes above which the reserve is refilled."""


class Reserve:
    """The reserve of one data root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Create the reserve if it does not exist."""
        if not self._folder.exists():
            self._folder.mkdir(exist_ok=True, mode=0o700)
            self.fill()

    def fill(self) -> None:
        """Replace the used files if there is free space again."""
        used = [path for number in range(_FILES) if not (path := self._folder / str(number)).exists()]
        usage = os.statvfs(self._folder)
        if not used or usage.f_bavail * usage.f_frsize < _ROOM:
            return
        with suppress(OSError):  # the disk fails now: the next call tries again
            for path in used:
                part = path.with_suffix(".part")
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, _BYTES)
                finally:
                    os.close(fd)
                part.replace(path)

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """Write like `atomic_files.write`; use blocks of the reserve if the disk is full. Raises OSError."""
        try:
            atomic_files.write(path, data, mode)
        except OSError as err:
            if err.errno not in FULL:
                raise
            for number in range(_FILES):
                try:
                    atomic_files.write(path, data, mode, self._folder / str(number))
                except OSError as spare_err:
                    # The file is used already, or the path is on another filesystem.
                    if spare_err.errno not in (errno.ENOENT, errno.EXDEV):
                        raise
                else:
                    return
            raise
