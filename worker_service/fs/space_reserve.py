"""Room that is kept for what must be written down when guests have filled the data root: ends, destroys, failures.

reserve/<number>    files whose blocks are there already. One becomes the next version of a record that finds no room

Blocks that were freed for that would be the next guest's before the record is written: these are never let go of. New
VMs get none of it: what is new is refused then.
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
"""Free space from which the reserve is made up again."""


class Reserve:
    """The reserve of one data root."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def prepare(self) -> None:
        """Make it, if there is none."""
        if not self._folder.exists():
            self._folder.mkdir(exist_ok=True, mode=0o700)
            self.fill()

    def fill(self) -> None:
        """Make up for what was used, where there is room again."""
        used = [path for number in range(_FILES) if not (path := self._folder / str(number)).exists()]
        usage = os.statvfs(self._folder)
        if not used or usage.f_bavail * usage.f_frsize < _ROOM:
            return
        with suppress(OSError):  # a disk that fails now: the next look tries again
            for path in used:
                part = path.with_suffix(".part")
                fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
                try:
                    os.posix_fallocate(fd, 0, _BYTES)
                finally:
                    os.close(fd)
                part.replace(path)

    def write(self, path: Path, data: bytes, mode: int = 0o600) -> None:
        """`durable.write`, on blocks of the reserve where there are no others. Raises OSError once they are used."""
        try:
            atomic_files.write(path, data, mode)
        except OSError as err:
            if err.errno not in FULL:
                raise
            for number in range(_FILES):
                try:
                    atomic_files.write(path, data, mode, self._folder / str(number))
                except OSError as another:
                    # It was used already; or the path is on another filesystem.
                    if another.errno not in (errno.ENOENT, errno.EXDEV):
                        raise
                else:
                    return
            raise
