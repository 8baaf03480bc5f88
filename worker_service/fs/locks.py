"""Exclusive locks on files and folders, by flock. The kernel frees a lock when its holder dies: no pid files exist."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock of a file, which is made if missing; yield whether this process has got it."""
    fd = lock(path, wait=wait)
    try:
        yield fd is not None
    finally:
        if fd is not None:
            unlock(fd)


def lock(path: Path, *, wait: bool = True) -> int | None:
    """Return the descriptor that holds the lock, or None if it is taken. A child that inherits it holds it."""
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return None
        if os.fstat(fd).st_nlink:
            return fd
        os.close(fd)  # `remove_lock` removed the file after this process opened it: the next process makes another one


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, wherever it is moved meanwhile. Raises FileNotFoundError: it was moved before."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        unlock(fd)


def unlock(fd: int) -> None:
    """Free the lock and close its descriptor.

    Closing alone would free the lock later if another process still has the descriptor open: the process that handed it
    over, or a child that has not started its own program yet.
    """
    fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def remove_lock(path: Path) -> None:
    """Remove a file that serves as a lock, unless a process holds it."""
    with locked(path, wait=False) as mine:
        if mine:
            path.unlink(missing_ok=True)
