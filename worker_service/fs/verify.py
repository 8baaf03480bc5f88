"""Read-back verification: digests of what the disk holds, not of what the page cache holds."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import itertools
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

_COPY_BYTES: Final = 1 << 20
_BLOCK_BYTES: Final = 4 << 20


class DigestCache:
    """The digests of the files that this process has read last.

    The key is the file's identity, size and time of change, so another link to the file finds the same digest.

    Args:
        limit: the number of digests to keep. The oldest one goes first.
    """

    def __init__(self, limit: int = 64) -> None:
        self._limit = limit
        self._digests: dict[tuple[int, int, int, int], str] = {}

    def __len__(self) -> int:
        """Return the number of digests."""
        return len(self._digests)

    def get(self, file: os.stat_result) -> str | None:
        """Return the digest of an unchanged file, or None if it is not here."""
        return self._digests.get(_identity(file))

    def put(self, file: os.stat_result, digest: str) -> None:
        """Remember the digest of a file."""
        self._digests.pop(_identity(file), None)
        while len(self._digests) >= self._limit:
            del self._digests[next(iter(self._digests))]
        self._digests[_identity(file)] = digest


_cache = DigestCache()


def digest_on_disk(fd: int, expected: str = "", report: Callable[[int], None] = lambda _: None) -> str:
    """Return the sha256 of what the disk holds of a file. Raises OSError.

    A file that has not changed since this process found the `expected` digest in it is not read again. `report`
    receives the bytes done and may raise to interrupt.
    """
    file = os.fstat(fd)
    cached = _cache.get(file)
    if expected and cached == expected:
        return cached
    digest = _direct_digest(fd, report) or _plain_digest(fd, report)
    _cache.put(file, digest)
    return digest


def copy_verified(source: Path, target: Path) -> None:
    """Copy a file with its holes, fsync it and read it back. Raises OSError, also if the disk has other bytes."""
    digest = hashlib.sha256()
    with source.open("rb") as old, target.open("xb") as new:
        while chunk := old.read(_COPY_BYTES):
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


def _identity(file: os.stat_result) -> tuple[int, int, int, int]:
    return file.st_dev, file.st_ino, file.st_size, file.st_mtime_ns


def _direct_digest(fd: int, report: Callable[[int], None]) -> str | None:
    """Read past the page cache, which keeps its pages for later readers. Return None without O_DIRECT."""
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
    """Digest one block while the disk reads the next one. The blocks are whole pages, as O_DIRECT requires."""
    digest, done, total = hashlib.sha256(), 0, os.fstat(fd).st_size
    blocks = itertools.cycle((mmap.mmap(-1, _BLOCK_BYTES), mmap.mmap(-1, _BLOCK_BYTES)))
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
