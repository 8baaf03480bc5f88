"""What a worker has to know of its host: which boot this is, and whether it is about to end."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Final

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SYSTEMD: Final = Path("/run/systemd/system")
"""There where systemd is the init: sd_booted(3)."""
_ANSWER_S: Final = 5.0


def boot_id() -> str:
    """Name of this boot of the host; empty where the kernel has none."""
    with suppress(OSError):
        return BOOT_ID.read_text("ascii").strip()
    return ""


def stopping() -> bool:
    """Whether systemd is shutting the host down; never where systemd is not the init."""
    if not _SYSTEMD.exists():
        return False
    with suppress(OSError, subprocess.TimeoutExpired):
        command = ["systemctl", "is-system-running"]
        told = subprocess.run(command, check=False, capture_output=True, text=True, timeout=_ANSWER_S)
        return told.stdout.strip() == "stopping"
    return False
