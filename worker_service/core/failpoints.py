"""Named places where a crash, a full disk or a broken one can be asked for, so that tests can try each of them.

`SALTERN_FAILPOINT=name[:n][=what]` acts at the n-th passing of that name (the first by default). What: `kill` (the
default: SIGKILL of this process), `stop` (SIGSTOP), `enospc`, `eio`. Without the variable it costs one look-up.
"""

from __future__ import annotations

import errno
import os
import signal
from typing import Final

ENVIRONMENT: Final = "SALTERN_FAILPOINT"
_ERRNO: Final = {"enospc": errno.ENOSPC, "eio": errno.EIO}
_passed: dict[str, int] = {}
_mine: str | None = None


def claim_failpoints() -> None:
    """A fault is this process's own: do not hand the variable on to its children."""
    global _mine  # noqa: PLW0603 - the environment is one for the process as well
    _mine = os.environ.pop(ENVIRONMENT, None)


def failpoint(name: str) -> None:
    """Do here what the environment asks for at this name; nothing at all in production."""
    wish = _mine or os.environ.get(ENVIRONMENT)
    if wish is None:
        return
    where, _, what = wish.partition("=")
    wanted, _, count = where.partition(":")
    if wanted != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != int(count or 1):
        return
    os.write(2, f"checkpoint {name}: {what or 'kill'}\n".encode())  # who reads the log knows that it was met
    if what in _ERRNO:
        raise OSError(_ERRNO[what], os.strerror(_ERRNO[what]), f"checkpoint {name}")
    os.kill(os.getpid(), signal.SIGSTOP if what == "stop" else signal.SIGKILL)
