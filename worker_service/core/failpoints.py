"""Named places where tests can cause a crash, or a full or broken disk.

`SALTERN_FAILPOINT=name[:n][=fault]` acts at the n-th passing of that name (the first by default). A fault is `kill`
(the default: SIGKILL of this process), `stop` (SIGSTOP), `enospc` or `eio`. Without the variable a failpoint costs one
look-up.
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
    """Keep the fault in this process: remove the variable that its children would inherit."""
    global _mine  # noqa: PLW0603 - the environment is one for the process as well
    _mine = os.environ.pop(ENVIRONMENT, None)


def failpoint(name: str) -> None:
    """Cause the fault that the environment requests at this name. Production has none."""
    requested = _mine or os.environ.get(ENVIRONMENT)
    if requested is None:
        return
    place, _, fault = requested.partition("=")
    chosen, _, count = place.partition(":")
    if chosen != name:
        return
    _passed[name] = _passed.get(name, 0) + 1
    if _passed[name] != int(count or 1):
        return
    os.write(2, f"failpoint {name}: {fault or 'kill'}\n".encode())  # so that the log shows it
    if fault in _ERRNO:
        raise OSError(_ERRNO[fault], os.strerror(_ERRNO[fault]), f"failpoint {name}")
    os.kill(os.getpid(), signal.SIGSTOP if fault == "stop" else signal.SIGKILL)
