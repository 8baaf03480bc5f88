"""The sandbox of a test run: `sandbox.sh` around pytest, and around each of its worker processes.

Tests see no other process of the machine and no other test process. The sandbox ends all leftovers, but a leftover
still fails the run: `leftovers` looks inside after the last fixture, and `outside` looks on the machine after the
sandbox has ended.
"""

import os
import secrets
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from devstack.console import progress
from devstack.layout import REPO

SCRIPT: Final = Path(__file__).with_name("sandbox.sh")
RUN: Final = "SALTERN_TEST_RUN"
"""Variable that every process of a run has; its value tells two runs apart."""
NONE: Final = "none"
KINDS: Final = ("offline", "online", NONE)
"""Without any network but a loopback; with the machine's; no sandbox at all."""
_FILES: Final = ("/var/tmp/saltern-*", "/var/log/libvirt/qemu/*", "/etc/libvirt/qemu/*.xml", "/run/netns/*")
_OTHERS: Final = ("saltern-bench-", "saltern-fresh-")
"""Prefixes of folders of the other verbs of devstack, which may run at the same time."""
_PROC: Final = Path("/proc")


def needed(kind: str) -> bool:
    """Return whether this process has to enter a sandbox of that kind: root can, unless it is in one already."""
    return kind != NONE and os.geteuid() == 0 and RUN not in os.environ


def entered() -> bool:
    """Return whether this process is in a sandbox."""
    return RUN in os.environ


def command(*argv: str, kind: str = "offline") -> tuple[str, ...]:
    """Return a command line that runs in a new sandbox."""
    return ("/bin/sh", str(SCRIPT), str(REPO), kind, *argv)


def python(kind: str) -> str:
    """Return the words for pytest-xdist that start an interpreter in a sandbox of its own."""
    return shlex.join(command(sys.executable, kind=kind))


def run(argv: Sequence[str], kind: str) -> int:
    """Run a command in a sandbox, and return its exit code, or 1 if it left something on the machine."""
    mark, there = secrets.token_hex(8), set(outside(""))
    # An interrupt reaches the command as well, which tidies up. SIG_IGN would be inherited.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        code = subprocess.run(command(*argv, kind=kind), env={**os.environ, RUN: mark}, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)
    left = [line for line in outside(mark) if line not in there]
    for line in left:
        progress(f"left on this machine by the tests: {line}")
    return code or int(bool(left))


def outside(mark: str) -> list[str]:
    """Return the traces of a run on the machine: processes with its mark, files and mounts with the tests' paths."""
    own = b"/var/tmp/saltern-"
    left = [f"process {pid}: {words}" for pid, words in processes(mark)]
    files = Path("/var/tmp").glob("saltern-*")
    left += [f"file {path}" for path in files if not path.name.startswith(_OTHERS)]
    left += [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if own.decode() in line]
    for text in (*Path("/var/log/libvirt/qemu").glob("*.log"), *Path("/etc/libvirt/qemu").glob("*.xml")):
        with suppress(OSError):
            if own in text.read_bytes():
                left.append(f"file {text}")
    return left


def processes(mark: str) -> list[tuple[int, str]]:
    """Return the pids and command lines of the processes of a run."""
    found = []
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if f"{RUN}={mark}".encode() in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((int(entry.name), _words(entry)))
    return found


def mounts() -> frozenset[str]:
    """Return the mount points of this sandbox."""
    return frozenset(line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())


def leftovers(before: frozenset[str]) -> list[str]:
    """Return the leftovers in this sandbox. `before` has its mount points before the first test."""
    mine, left = _ancestors(), []
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and int(entry.name) not in mine:
            with suppress(OSError):
                if words := _words(entry):  # a zombie has none
                    left.append(f"process {entry.name}: {words}")
    left += [f"mount {path}" for path in sorted(mounts() - before)]
    for pattern in _FILES:
        left += [f"file {path}" for path in sorted(Path("/").glob(pattern[1:]))]
    return left


def _ancestors() -> set[int]:
    """Return this process, its ancestors, and process 1."""
    pids, pid = {1}, os.getpid()
    while pid > 1:
        pids.add(pid)
        pid = int((_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
    return pids


def _words(entry: Path) -> str:
    return (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
