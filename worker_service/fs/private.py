"""Who may read a data root: root and, where it must, QEMU's user. Nobody else may even pass through its folders.

FOLDER  folders on QEMU's way to its files: QEMU's group may pass, and not list
BASE    bases: QEMU's group may read. libvirt leaves their owner alone, so that QEMU's user cannot write to them
DISK    all else: root. libvirt makes QEMU's user the owner of the disks of a running VM

No file depends on the umask of the process that makes it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

FOLDER: Final = 0o710
BASE: Final = 0o440
DISK: Final = 0o600


def set_access(path: Path, mode: int, gid: int = -1) -> None:
    """Give a file or folder of root's a mode, and a group if one is given."""
    found = path.stat(follow_symlinks=False)
    if gid not in (-1, found.st_gid):
        os.chown(path, -1, gid, follow_symlinks=False)
    if stat.S_IMODE(found.st_mode) != mode or gid not in (-1, found.st_gid):
        path.chmod(mode)


def set_like_parent(path: Path, mode: int) -> None:
    """Give a new file or folder a mode, and the group of the folder that it is in."""
    set_access(path, mode, path.parent.stat().st_gid)


def make_folder(folder: Path, gid: int) -> None:
    """Make a folder that QEMU's group may pass."""
    folder.mkdir(exist_ok=True, mode=0o700)
    set_access(folder, FOLDER, gid)


def close(root: Path, gid: int) -> None:
    """Take from others what an older version left them in a data root. It costs one call where that is done already.

    Args:
        root: the data root. Its own mode is changed last: it is the mark of what is done.
        gid: QEMU's group.
    """
    found = root.stat()
    if stat.S_IMODE(found.st_mode) == FOLDER and gid in (-1, found.st_gid):
        return
    for place in ("vms", "failed_to_save", "images"):
        for folder in (root / place, *_folders(root / place)):
            if folder.is_dir():
                set_access(folder, FOLDER, gid)
    for where, names, files in os.walk(root):
        for name in (*names, *files):
            _close(Path(where, name), gid)
        # What QEMU's user owns, it may exchange for a link at any time.
        names[:] = [name for name in names if _is_own(Path(where, name))]
    set_access(root, FOLDER, gid)


def _folders(place: Path) -> list[Path]:
    private = {"by-uri", "prefetch"}
    return [path for path in place.glob("*") if path.is_dir() and not path.is_symlink() and path.name not in private]


def _is_own(path: Path) -> bool:
    try:
        return path.stat(follow_symlinks=False).st_uid == os.geteuid()
    except FileNotFoundError:
        return False


def _close(path: Path, gid: int) -> None:
    try:
        found = path.stat(follow_symlinks=False)
        if stat.S_ISREG(found.st_mode):
            is_base = path.parent.name == "sha256" and not path.suffix
            set_access(path, BASE if is_base else stat.S_IMODE(found.st_mode) & 0o700, gid if is_base else -1)
        elif stat.S_ISDIR(found.st_mode) and found.st_mode & 0o007:
            path.chmod(stat.S_IMODE(found.st_mode) & 0o700)
    except FileNotFoundError:  # another process removed it meanwhile
        return
