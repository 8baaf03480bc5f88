"""Atomic and durable files: written beside the target, fsynced, renamed, and the folder fsynced too."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from worker_service.core.failpoints import failpoint

_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100
_SYNC_FILE_RANGE_WRITE: Final = 2
NO_LINKS: Final = frozenset({errno.EXDEV, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})
"""What a hard link fails with where there can be none: between filesystems, or on one without them."""
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write(path: Path, data: bytes, mode: int = 0o600, spare: Path | None = None) -> None:
    """Replace the content of `path` by `data`, durably.

    After the return the disk holds the new content; before it the old content is whole. A crash always leaves the same
    name beside the file. The next writer of the file removes it, for example the interrupted step when it runs again.

    `spare` is a file of the same filesystem. Its blocks are used for the new content.
    """
    part = path.with_name(f".{path.name}.part")
    with os.fdopen(_create_locked(part, mode, spare), "wb") as file:
        try:
            file.write(data)
            # Truncated last, so that the blocks of `spare` are overwritten, not freed and allocated again.
            file.truncate()
            os.fsync(file.fileno())
            failpoint("files.before_rename")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _create_locked(part: Path, mode: int, spare: Path | None) -> int:
    """Return the descriptor of a new file, locked while it is open. A part file without a lock is left by a crash."""
    while True:
        try:
            fd = _rename_spare(spare, part, mode) if spare else os.open(part, _NEW, mode)
        except FileExistsError:
            with suppress(FileNotFoundError), _locked_existing(part) as old:
                if _is_file_at(old, part):
                    part.unlink()
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is_file_at(fd, part):  # another writer may have removed it as a leftover before it was locked
            return fd
        os.close(fd)


def _rename_spare(spare: Path, part: Path, mode: int) -> int:
    """Rename a spare file to `part` and return its descriptor. Raises FileExistsError if `part` exists."""
    fd = os.open(spare, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.fchmod(fd, mode)
        rename_new(spare, part)
    except BaseException:
        os.close(fd)
        raise
    return fd


@contextmanager
def _locked_existing(path: Path) -> Iterator[int]:
    """Lock an existing file and yield its descriptor. Never follow a link, and never wait for a pipe's writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _is_file_at(fd: int, path: Path) -> bool:
    """Return whether `path` is now the name of the descriptor's file."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat(follow_symlinks=False))
    except FileNotFoundError:
        return False


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file(path: Path) -> None:
    """Make the content of a file durable that another process wrote."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename_new(source: Path, target: Path) -> None:
    """Rename without ever replacing an existing target. Raises FileExistsError. Source: renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) == 0:
        return
    code = ctypes.get_errno()
    if code not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(code, os.strerror(code), str(source), None, str(target))
    # The filesystem lacks RENAME_NOREPLACE (NFS, FUSE).
    if source.is_dir():
        source.rename(target)  # it replaces only an empty folder
        return
    try:
        os.link(source, target)  # it refuses to replace as well
        source.unlink()
    except OSError as err:
        if err.errno not in NO_LINKS:
            raise
        _rename_over_mark(source, target)


def is_mark(target: Path, source: Path) -> bool:
    """Return whether `target` only keeps its name for `source`: `rename_new` was interrupted."""
    mark = _mark(source)
    try:
        fd = os.open(target, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = os.fstat(fd)
        return stat.S_ISREG(found.st_mode) and found.st_size == len(mark) and os.read(fd, len(mark)) == mark
    finally:
        os.close(fd)


def _rename_over_mark(source: Path, target: Path) -> None:
    """Rename a file on a filesystem that has neither RENAME_NOREPLACE nor hard links (exFAT).

    The name is taken by a new file, the mark, that names the source. The rename then replaces the mark. After a crash
    in between, the next try with the same source finds its mark.
    """
    try:
        fd = os.open(target, _NEW, 0o600)
    except FileExistsError:
        if not is_mark(target, source):
            raise
    else:
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(_mark(source))
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    source.replace(target)


def _mark(source: Path) -> bytes:
    return b"saltern: this name is kept for " + os.fsencode(source.name) + b"\n"


def start_writing(path: Path) -> None:
    """Start to write the cached pages of a file to the disk while it still grows. Source: sync_file_range(2).

    The call promises nothing and never fails. It shortens the later fsync.
    """
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            whole_file = ctypes.c_int64(0)
            ctypes.CDLL(None).sync_file_range(fd, whole_file, whole_file, _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(fd)
