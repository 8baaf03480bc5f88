"""A cache of things that take long to build: one process builds, and the others wait for it.

The name of a thing has a digest of what it is made from, so a change of that makes another one.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from devstack.console import progress


def built_once(cache: Path, name: str, version: str, make: Callable[[Path, Path], Path], *, suffix: str = "") -> Path:
    """Return `cache/NAME-VERSION` with a suffix. Make it if it is missing, and then remove other versions of it.

    `make` gets an empty folder, which is removed afterwards, and a log. It returns the complete file or folder. The log
    is `NAME.log` in the cache.
    """
    out = cache / f"{name}-{version}{suffix}"
    with locked(cache, name):
        if out.exists():
            return out
        log = cache / f"{name}.log"
        log.write_bytes(b"")
        # Its name is that of a version, so that the next build removes what a killed one has left.
        with tempfile.TemporaryDirectory(prefix=f"{name}-", suffix=suffix, dir=cache) as place:
            folder = Path(place)
            folder.chmod(0o755)  # users of services pass through it
            made = make(folder, log)
            if made.is_file():
                with made.open("rb") as file:
                    os.fsync(file.fileno())
            made.rename(out)
            for other in set(cache.glob(f"{name}-*{suffix}")) - {out, folder}:
                shutil.rmtree(other) if other.is_dir() else other.unlink()
    return out


@contextmanager
def locked(cache: Path, name: str) -> Iterator[None]:
    """Hold the lock for a name in the cache, which is made if it is missing."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("wb") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(f"waiting for another process, which is building {name} in {cache}")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(*parts: str | Path) -> str:
    """Return 16 digits that change with any of the texts, files, and folders with all files below them."""
    total = hashlib.sha256()
    for part in parts:
        if isinstance(part, str):
            total.update(part.encode())
            continue
        for path in sorted(part.rglob("*")) if part.is_dir() else [part]:
            if path.is_file():
                runs = os.access(path, os.X_OK)
                total.update(f"{path.relative_to(part)} {runs}\n".encode() + path.read_bytes())
    return total.hexdigest()[:16]
