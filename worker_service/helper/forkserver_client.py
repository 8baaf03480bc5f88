"""Request a helper from the fork server, and leave a fork server running."""

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
from worker_service.helper.jobs import Job

PATIENCE_S: Final = 0.5
"""Longest time that either side waits for the other."""
READY: Final = b"r"
GO: Final = b"g"
_PACKAGE: Final = Path(__file__).parents[1]


class ForkRequest(msgspec.Struct, frozen=True):
    """A request for one helper. The descriptors follow it: the log, the job's lock and, if `kind` is given, a slot."""

    version: str
    job: Job
    kind: str | None
    fault: str = ""
    """For the helper, at a failpoint. Source: the environment of the requester."""


@cache
def version() -> str:
    """Return what identifies the code of this process, so that older or newer code is noticed."""
    newest = max(path.stat().st_mtime_ns for path in _PACKAGE.rglob("*.py"))
    return f"{_PACKAGE} {newest}"


def request_fork(data_root: Path, job: Job, kind: str | None, descriptors: Sequence[int]) -> bool:
    """Have the fork server fork a helper; return False if it has not, and never will."""
    request = msgspec.json.encode(ForkRequest(version(), job, kind, os.environ.get(ENVIRONMENT, "")))
    with suppress(OSError), connect(data_root) as call:
        call.send(request)
        if call.recv(1) == READY:
            socket.send_fds(call, [GO], descriptors)
            return True
    return False


def ensure_running(data_root: Path, settings_argument: Sequence[str]) -> None:
    """Start a fork server for the next helpers, unless one is running."""
    with suppress(OSError), connect(data_root):
        return
    argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper.forkserver", *settings_argument]
    quiet = subprocess.DEVNULL
    with suppress(OSError):
        subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", check=False)


@contextmanager
def connect(data_root: Path) -> Iterator[socket.socket]:
    """Connect to the fork server of this user. Raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.settimeout(PATIENCE_S)
        call.connect(address(data_root))
        require_own_user(call)
        yield call


def address(data_root: Path) -> str:
    """Return the abstract socket name of the fork server. It goes with its process, and only one process can have it.

    The name has the data root and the mount namespace in it: a helper must run in the sandbox of its requester.
    """
    root, namespace = data_root.stat(), Path("/proc/self/ns/mnt").stat()
    return f"\0saltern-forkserver-{root.st_dev:x}-{root.st_ino:x}-{namespace.st_ino:x}"


def require_own_user(call: socket.socket) -> None:
    """Raise PermissionError if the other end belongs to another user."""
    credentials = call.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user = int.from_bytes(credentials[4:8], sys.byteorder)
    if user != os.geteuid():
        raise PermissionError(f"the other end is user {user}")
