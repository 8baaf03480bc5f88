"""Files that survive a power cut: written beside, fsynced, renamed, and the folder fsynced too."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import hashlib
import itertools
import mmap
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from worker_service.core.failpoints import failpoint

_RENAME_NOREPLACE: Final = 1
_AT_FDCWD: Final = -100
_CHUNK: Final = 1 << 20
_BLOCK: Final = 4 << 20
_SYNC_FILE_RANGE_WRITE: Final = 2
_NEW: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC


def write(path: Path, data: bytes, mode: int = 0o600, spare: Path | None = None) -> None:
    """Replace `path` by `data`: after the return the new content is on disk, before it the old one is whole.

    What a crash leaves beside it has always the same name: whoever writes there next, as the step that was cut off does
    when it is done again, takes it away. `spare` is a file of the same filesystem whose blocks are taken for it.
    """
    part = path.with_name(f".{path.name}.part")
    with os.fdopen(_new_alone(part, mode, spare), "wb") as file:
        try:
            file.write(data)
            # In the end: blocks that are there already are written to, not given back and asked for anew.
            file.truncate()
            os.fsync(file.fileno())
            failpoint("files.before_rename")
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    sync_folder(path.parent)


def _new_alone(part: Path, mode: int, spare: Path | None) -> int:
    """A descriptor of a new file, flocked as long as it is open: without its lock it is what a crash left."""
    while True:
        try:
            fd = _taken(spare, part, mode) if spare else os.open(part, _NEW, mode)
        except FileExistsError:
            with suppress(FileNotFoundError), _held(part) as old:
                if _is(old, part):
                    part.unlink()
            continue
        fcntl.flock(fd, fcntl.LOCK_EX)
        if _is(fd, part):  # else somebody took it for a leftover in the moment before it was locked
            return fd
        os.close(fd)


def _taken(spare: Path, part: Path, mode: int) -> int:
    """A descriptor of a spare file, that has the name `part` now; raises FileExistsError where there is one."""
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
def _held(path: Path) -> Iterator[int]:
    """The descriptor of a file that is there, once it is flocked; never follows a link or waits for a pipe's writer."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield fd
    finally:
        os.close(fd)


def _is(fd: int, path: Path) -> bool:
    """Whether a descriptor's file is the one that has this name now."""
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
    """Make the content of a file that others wrote durable."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def rename_new(source: Path, target: Path) -> None:
    """Rename without ever replacing what has the name already; raises FileExistsError. Source: renameat2(2)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE) != 0:
        code = ctypes.get_errno()
        if code == errno.EINVAL:  # this filesystem cannot: a hard link refuses to replace as well
            os.link(source, target)
            source.unlink()
            return
        raise OSError(code, os.strerror(code), str(source), None, str(target))


def start_writing(path: Path) -> None:
    """Let the disk begin with what memory holds of a file that is still being written. Source: sync_file_range(2).

    That promises nothing, and is no error where it cannot be: it spares time to the fsync that is to come.
    """
    with suppress(FileNotFoundError):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            all_of_it = ctypes.c_int64(0)
            ctypes.CDLL(None).sync_file_range(fd, all_of_it, all_of_it, _SYNC_FILE_RANGE_WRITE)
        finally:
            os.close(fd)


_known: dict[tuple[int, int, int, int], str] = {}


def digest_on_disk(fd: int, expected: str = "", report: Callable[[int], None] = lambda _: None) -> str:
    """Sha256 of what the disk holds of a file, not of what memory remembers. Raises OSError.

    A file that did not change since this process found what is `expected` in it is not read again: by another link, it
    is still the same file. `report` is told the bytes done and may raise to interrupt.
    """
    found = os.fstat(fd)
    key = found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
    if not expected or _known.get(key) != expected:
        _known[key] = _direct_digest(fd, report) or _plain_digest(fd, report)
    return _known[key]


def _direct_digest(fd: int, report: Callable[[int], None]) -> str | None:
    """Past the page cache, which stays for whoever reads the file next; None on a filesystem that knows no such way."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT)
        return _digest(fd, report)
    except OSError as err:
        if err.errno != errno.EINVAL:
            raise
        return None
    finally:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _plain_digest(fd: int, report: Callable[[int], None]) -> str:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    return _digest(fd, report)


def _digest(fd: int, report: Callable[[int], None]) -> str:
    """The disk reads one block while the processor digests the other; O_DIRECT wants memory in whole pages."""
    digest, done, total = hashlib.sha256(), 0, os.fstat(fd).st_size
    blocks = itertools.cycle((mmap.mmap(-1, _BLOCK), mmap.mmap(-1, _BLOCK)))
    with ThreadPoolExecutor(1) as disk:
        following = next(blocks)
        reading = disk.submit(os.preadv, fd, [following], 0)
        while size := reading.result():
            block, following = following, next(blocks)
            done += size
            if done < total:
                reading = disk.submit(os.preadv, fd, [following], done)
            digest.update(memoryview(block)[:size])
            report(done)
            if done >= total:
                break
    return digest.hexdigest()


def copy(source: Path, target: Path) -> None:
    """Copy a file with its holes, fsync it, read back what the disk has. Raises OSError, also where that differs."""
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("xb") as new:
        while chunk := old.read(_CHUNK):
            digest.update(chunk)
            if chunk.count(0) == len(chunk):
                new.seek(len(chunk), os.SEEK_CUR)
            else:
                new.write(chunk)
        new.truncate()
        os.fchmod(new.fileno(), os.fstat(old.fileno()).st_mode & 0o777)
        new.flush()
        os.fsync(new.fileno())
    with target.open("rb") as new:
        if digest_on_disk(new.fileno(), digest.hexdigest()) != digest.hexdigest():
            raise OSError(errno.EIO, "It reads back differently", str(target))


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive flock on a file (made if missing) or a folder; yields whether it was got.

    The kernel lets go of it when the holder dies, however it dies: that is why there are no pid files.
    """
    fd = lock(path, wait=wait)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            unlock(fd)


def lock(path: Path, *, wait: bool = True) -> int | None:
    """The descriptor that holds such a flock, None where somebody else does. A child that inherits it holds it."""
    is_folder = path.is_dir()
    flags = os.O_RDONLY | os.O_DIRECTORY if is_folder else os.O_RDWR | os.O_CREAT
    while True:
        fd = os.open(path, flags | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if is_folder or os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # removed by `remove_lock` after it was opened here: the next to come would make another one


def unlock(fd: int) -> None:
    """Free such a flock, and close its descriptor.

    Whoever only closed it would free it later, if the process that handed it over, or a child that has not begun its
    own program yet, still has it open.
    """
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def remove_lock(path: Path) -> None:
    """Remove a file that serves as a lock, unless somebody holds it."""
    with locked(path, wait=False) as mine:
        if mine:
            path.unlink(missing_ok=True)
