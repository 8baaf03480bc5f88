"""Ask the fork server for a helper, and leave a fork server behind."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.failpoints import ENVIRONMENT

PATIENCE_S: Final = 0.5
"""Longest time that either side waits for the other."""
READY: Final = b"r"
GO: Final = b"g"
_PACKAGE: Final = Path(__file__).parents[1]


class ForkRequest(msgspec.Struct, frozen=True):
    """What a helper is to be born with, beside its log, its VM's work lock and, where `kind` is given, a seat."""

    uuid: str
    version: str
    kind: str | None


@cache
def version() -> str:
    """Tells the code of this process from what was installed before or after it."""
    newest = max(path.stat().st_mtime_ns for path in _PACKAGE.rglob("*.py"))
    return f"{_PACKAGE} {newest}"


def request_fork(data_root: Path, uuid: str, log_file: int, lock: int, slot: tuple[str, int] | None) -> bool:
    """Let the nursery bear a helper; False where it did not, and never will."""
    if ENVIRONMENT in os.environ:  # a fault is asked of a helper that has this process's environment
        return False
    birth = msgspec.json.encode(ForkRequest(uuid, version(), slot[0] if slot else None))
    descriptors = [log_file, lock, *([slot[1]] if slot else [])]
    with suppress(OSError), connect(data_root) as call:
        call.send(birth)
        if call.recv(1) == READY:
            socket.send_fds(call, [GO], descriptors)
            return True
    return False


def ensure_running(data_root: Path, settings_argument: Sequence[str]) -> None:
    """See to it that there is a nursery, for whoever comes next."""
    with suppress(OSError), connect(data_root):
        return
    argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper.forkserver", *settings_argument]
    quiet = subprocess.DEVNULL
    with suppress(OSError):
        subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", check=False)


@contextmanager
def connect(data_root: Path) -> Iterator[socket.socket]:
    """A connection to the nursery, if it is one of our own; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.settimeout(PATIENCE_S)
        call.connect(address(data_root))
        require_own_user(call)
        yield call


def address(data_root: Path) -> str:
    """An abstract name: it goes with the process that has it, and only one can have it.

    One for each data root and mount namespace: a helper is born into the sandbox of whoever asks for it.
    """
    root, world = data_root.stat(), Path("/proc/self/ns/mnt").stat()
    return f"\0saltern-forkserver-{root.st_dev:x}-{root.st_ino:x}-{world.st_ino:x}"


def require_own_user(call: socket.socket) -> None:
    """Raise PermissionError where the other end is another user's."""
    credentials = call.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user = int.from_bytes(credentials[4:8], sys.byteorder)
    if user != os.geteuid():
        raise PermissionError(f"the other end is user {user}")
