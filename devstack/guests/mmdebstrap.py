"""Debian in a folder, made by mmdebstrap from this machine's mirrors."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from devstack.console import Trouble
from devstack.guests.tools import run

# mmdebstrap runs python3 for each package. A version manager's python3 would take half a second each time.
_PATH: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
_APT_OPTIONS: Final = (
    "Acquire::http::Proxy", "Acquire::https::Proxy", "Acquire::Check-Valid-Until", "Acquire::Check-Date",
)  # fmt: skip
_NO_DOCUMENTS: Final = ("man/*", "doc/*", "locale/*", "info/*")


def install(
    root: Path, packages: Sequence[str], log: Path, *words: str, suite: str = "bookworm", sources: str = ""
) -> None:
    """Install Debian without documents into the new folder `root`; two more files are made beside that meanwhile.

    `words` are further options for mmdebstrap. `sources`, a sources.list, stands for this machine's. Raises Trouble
    with a remedy.
    """
    if os.geteuid() != 0:
        raise Trouble("Only root can make a Debian with mmdebstrap, as its files belong to root: run this as root.")
    # An archive and not a folder: the installation mounts file systems in its folder, and that of `root` must be
    # removable at any time.
    archive, listed = root.with_name("root.tar"), root.with_name("sources.list")
    listed.write_text(sources or apt_sources(log))
    own = ["--variant=apt", *without(*_NO_DOCUMENTS), '--aptopt=Acquire::Languages "none";', *apt_options(log)]
    run(command(archive, listed, packages, *own, *words, suite=suite), log=log)
    root.mkdir()
    run(["tar", "--extract", "--numeric-owner", "--xattrs", "--file", archive, "--directory", root], log=log)
    archive.unlink()


def command(target: Path, sources: Path, packages: Sequence[str], *words: str, suite: str = "bookworm") -> list[str]:
    """Return the command that makes a Debian in a folder or an archive. `words` are further options."""
    options = ["--mode=root", *words, f"--include={','.join(packages)}"]
    return ["env", _PATH, "mmdebstrap", *options, suite, str(target), str(sources)]


def without(*names: str) -> list[str]:
    """Return the options that keep files below /usr/share away."""
    return [f"--dpkgopt=path-exclude=/usr/share/{name}" for name in names]


def apt_options(log: Path) -> list[str]:
    """Return this machine's apt options for its mirror, as options for mmdebstrap."""
    listing = ("apt-config", "dump", "--no-empty", '--format=%F "%v";%n')
    lines = [line for name in _APT_OPTIONS for line in run([*listing, name], log=log).decode().splitlines()]
    return [f"--aptopt={line}" for line in lines if line]


def apt_sources(log: Path | None = None) -> str:
    """Return this machine's mirrors of Debian 12 as sources.list. Raises Trouble if it has none."""
    fields = "$(ORIGIN) $(REPO_URI) $(CODENAME)"
    listing = run(
        ["apt-get", "indextargets", "--format", fields, "MetaKey: main/binary-amd64/Packages"], log=log
    ).decode()
    found = [line.split() for line in listing.splitlines()]
    lines = [f"deb {uri} {suite} main" for origin, uri, suite in found if origin == "Debian" and "bookworm" in suite]
    if not lines:
        raise Trouble("apt has no mirror of Debian 12; run apt-get update, then build again")
    return "".join(f"{line}\n" for line in dict.fromkeys(lines))
