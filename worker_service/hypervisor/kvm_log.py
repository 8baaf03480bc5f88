"""Read from libvirt's log of a domain how its last run ended.

libvirtd knows the reason of a shutoff only until it is restarted. Its log stays: the command line of each start under a
line `… starting up libvirt version: …`, and `… shutting down, reason=crashed` at the end of a run. A host that lost
power leaves a start without an end. Source: qemuProcessStop in libvirt's qemu_process.c.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from worker_service.contract import HaltCause

_TAIL_BYTES: Final = 64 << 10
"""A start is about 4 KiB of command line; virtlogd rotates the log at 2 MiB."""
_START: Final = re.compile(rb"^\S+ \S+: starting up libvirt version", re.MULTILINE)
_END: Final = re.compile(rb"^\S+ \S+: shutting down, reason=(.+)$", re.MULTILINE)
_CAUSES: Final[Mapping[bytes, HaltCause]] = {
    b"shutdown": HaltCause.GUEST,
    b"destroyed": HaltCause.KILLED,
    b"crashed": HaltCause.CRASHED,
    b"daemon": HaltCause.CRASHED,
    b"migrated": HaltCause.MIGRATED,
    b"saved": HaltCause.SAVED,
}


def last_end(log: Path, uuid: str) -> HaltCause | None:
    """Return why the last run of a domain ended, or None if the log is missing, has no end, or is of another domain."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            return _last_end(file.read(), uuid)
    except OSError:
        return None


def _last_end(text: bytes, uuid: str) -> HaltCause | None:
    starts = list(_START.finditer(text))
    if not starts:
        return None
    run = text[starts[-1].start() :]
    if f"-uuid {uuid}".encode() not in run:  # an earlier VM of this name
        return None
    ends = _END.findall(run)
    return _CAUSES.get(ends[-1].strip(), HaltCause.UNKNOWN) if ends else None
