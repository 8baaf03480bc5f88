"""Daemons of the development stack, started in a session of their own and identified by pid and start time.

A pid alone is no identity: after a crash or a reboot the kernel gives it to another process. So the start time from
`/proc/<pid>/stat` and the boot id are recorded with it, and a process gets a signal only if all three agree.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Final

_PROC: Final = Path("/proc")
_ROUNDS: Final = 5
"""Times that the members of a session are looked for and killed."""
_CHILDREN: Final[dict[int, subprocess.Popen[bytes]]] = {}
"""Daemons that this process started. They are its children, so it has to reap them."""


@dataclass(frozen=True)
class Identity:
    """One process, unique for all time: `start` is in clock ticks since the boot with the id `boot`."""

    pid: int
    start: int
    boot: str

    @property
    def alive(self) -> bool:
        """Return whether exactly this process still runs. A zombie does not."""
        if child := _CHILDREN.get(self.pid):
            child.poll()
        return identify(self.pid) == self


def boot_id() -> str:
    """Return the id of this boot of the machine."""
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """Return the process that has this pid now, or None if there is none or only a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat[0] == "Z" else Identity(pid, int(stat[19]), boot_id())


def _stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/<pid>/stat from the third on: the second, the name, may hold blanks and brackets."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None


def append_to(log: Path) -> IO[bytes]:
    """Open a log to append to it. Only its owner may read it."""
    log.parent.mkdir(parents=True, exist_ok=True)
    return os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600), "ab")


def spawn(
    argv: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str] | None = None, umask: int = 0o022
) -> Identity:
    """Start a daemon in its own session, with its output appended to `log`. Raises OSError if it cannot run.

    The daemon gets `umask`, not the one of this process.
    """
    with append_to(log) as out:
        child = subprocess.Popen(
            argv,
            cwd=cwd,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            umask=umask,
        )
    _CHILDREN[child.pid] = child
    # A child that has ended is a zombie until it is polled, so its start time can always be read.
    stat = _stat(child.pid)
    assert stat is not None  # noqa: S101
    return Identity(child.pid, int(stat[19]), boot_id())


def family(leader: Identity, log: Path) -> list[Identity]:
    """Return every live process of the session that `leader` began, itself first. Helpers have their own sessions.

    Salt forks. If its first process is killed, the others stay and hold the ports. Then the number of the session is no
    proof any more, so these processes must also write to `log`.
    """
    alive = leader.alive
    members = [] if not alive else [leader]
    for pid in sorted(int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()):
        stat = _stat(pid)
        if pid != leader.pid and stat and stat[3] == str(leader.pid) and (alive or _writes_to(pid, log)):
            members += [one for one in [identify(pid)] if one]
    return members if leader.boot == boot_id() else []


def _writes_to(pid: int, log: Path) -> bool:
    try:
        return (_PROC / str(pid) / "fd/1").readlink() == log
    except OSError:
        return False


def end(leader: Identity, log: Path, *, grace_s: float = 10.0) -> bool:
    """End a daemon with SIGTERM, and its whole session with SIGKILL after `grace_s` seconds. Return whether any lived.

    With `grace_s=0` only SIGKILL is sent, as in a crash.
    """
    members = family(leader, log)
    lived = bool(members)
    if members and grace_s:
        _signal(leader, signal.SIGTERM)
        wait_gone(leader, grace_s)
        members = list({*members, *family(leader, log)})
    for _ in range(_ROUNDS):  # one of them may fork until it is killed
        for one in members:
            _signal(one, signal.SIGKILL)
        for one in members:
            _wait_reaped(one, 5.0)
        if not (members := family(leader, log)):
            break
    return lived


def wait_gone(one: Identity, timeout_s: float) -> bool:
    """Wait until the process has ended; return False after the timeout."""
    deadline = time.monotonic() + timeout_s
    while one.alive:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _wait_reaped(one: Identity, timeout_s: float) -> None:
    """Wait until the zombie is gone too: a new Salt would take it for a running one and end."""
    deadline = time.monotonic() + timeout_s
    while (one.alive or (_PROC / str(one.pid)).exists()) and time.monotonic() < deadline:
        time.sleep(0.02)


def _signal(one: Identity, number: signal.Signals) -> None:
    if one.alive:
        try:
            os.kill(one.pid, number)
        except ProcessLookupError:
            return


def remember(path: Path, one: Identity) -> None:
    """Write the identity of a started daemon for `recall`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(asdict(one)) + "\n")


def recall(path: Path) -> Identity | None:
    """Return the daemon recorded at `path`, alive or not; or None if the record is missing or unreadable."""
    try:
        return Identity(**json.loads(path.read_text()))
    except (FileNotFoundError, ValueError, TypeError):
        return None
