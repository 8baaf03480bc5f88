"""What to do about an error of the system: one sentence for people."""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from typing import Final

_ADVICE: Final[Mapping[int, str]] = {
    errno.ENOSPC: "Free space there.",
    errno.EDQUOT: "Free space there, or raise the quota.",
    errno.EFBIG: "That filesystem, or a limit, takes no file of this size: choose another place.",
    errno.ENAMETOOLONG: "Choose a shorter name.",
    errno.EROFS: "Mount that filesystem writable.",
    errno.EACCES: "Check its owner and mode.",
    errno.EPERM: "That filesystem does not allow it: choose another place.",
    errno.ENOENT: "Check the path.",
    errno.EIO: "Check that disk; the kernel's log says more.",
    errno.ESTALE: "Mount that share again.",
    errno.ENOTCONN: "Mount that share again.",
    errno.ENOMEM: "Free memory on this host.",
    errno.EMFILE: "Close other files of this process, or raise its limit.",
}


def explained(err: OSError) -> str:
    """Return what an error is, and what to do about it."""
    return f"{err.strerror or err}. {_ADVICE.get(err.errno or 0, 'Check that disk.')}"


def advice_on(text: str) -> str:
    """Return what to do about the error of the system that a program's words name, or an empty string."""
    return next((advice for code, advice in _ADVICE.items() if os.strerror(code) in text), "")
