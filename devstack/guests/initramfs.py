"""An initramfs: a gzipped cpio archive ("newc") that the kernel unpacks into its first file system.

Written here and not by cpio(1), so that it needs no root and no tree on the disk, and is reproducible.
Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import gzip
import stat
from pathlib import Path, PurePosixPath
from typing import Final

_TRAILER: Final = "TRAILER!!!"
_ALIGNMENT: Final = 4


class Initramfs:
    """Files, links and folders of a root file system, owned by root. A file's parent folders are added with it."""

    def __init__(self) -> None:
        self._entries: dict[PurePosixPath, tuple[int, bytes]] = {}

    def file(self, path: str, content: bytes, *, executable: bool = False) -> None:
        """Add a file, or replace it."""
        self._add(PurePosixPath(path), stat.S_IFREG | (0o755 if executable else 0o644), content)

    def link(self, path: str, target: str) -> None:
        """Add a symbolic link, or replace what has its name."""
        self._add(PurePosixPath(path), stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str) -> None:
        """Add a folder if it is missing."""
        self._entries.setdefault(PurePosixPath(path), (stat.S_IFDIR | 0o755, b""))

    def tree(self, root: Path) -> None:
        """Add all files below a folder of this machine. Files that their owner may execute stay executable."""
        for path in sorted(root.rglob("*")):
            if path.is_file():
                runs = bool(path.stat().st_mode & stat.S_IXUSR)
                self.file(path.relative_to(root).as_posix(), path.read_bytes(), executable=runs)

    def packed(self) -> bytes:
        """Return the gzipped archive."""
        entries = sorted(self._entries.items())  # a folder sorts before its content
        members = [_member(number, str(path), *entry) for number, (path, entry) in enumerate(entries, start=1)]
        return gzip.compress(b"".join([*members, _member(0, _TRAILER, 0, b"")]), compresslevel=6, mtime=0)

    def _add(self, path: PurePosixPath, mode: int, content: bytes) -> None:
        for parent in path.parents[:-1]:
            self.folder(str(parent))
        self._entries[path] = (mode, content)


def _member(inode: int, name: str, mode: int, content: bytes) -> bytes:
    label = name.encode() + b"\0"
    # inode, mode, uid, gid, links, mtime, size, device, device of a special file, length of the name, checksum
    fields = (inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(label), 0)
    header = b"070701" + b"".join(b"%08X" % field for field in fields)
    return _padded(header + label) + _padded(content)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % _ALIGNMENT)
