"""When a guest came further: when its report changed, not when it wrote. One that boots in a loop writes for ever."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.guest_agent.report import Report

_FILE: Final = "agent.progress.json"


class _Seen(msgspec.Struct, frozen=True):
    """Digest of a report, and when it was first so, in seconds since the epoch."""

    report: str
    at: float


def last(folder: Path, life: str, said: Report, written: float) -> float:
    """When the report of a guest last changed, in seconds since the epoch.

    It is remembered beside the log, and not durable: lost, the guest has its time once more.

    Args:
        folder: the VM's folder.
        life: names the life of the VM; what it said in an earlier one is none of this.
        said: what its log says now.
        written: when that was last written to; in seconds since the epoch.
    """
    path = folder / _FILE
    digest = hashlib.sha256(msgspec.json.encode((life, said))).hexdigest()
    with suppress(FileNotFoundError, msgspec.MsgspecError):
        seen = msgspec.json.decode(path.read_bytes(), type=_Seen)
        if seen.report == digest:
            return seen.at
    with suppress(OSError):
        part = path.with_name(f".{_FILE}.part")
        part.write_bytes(msgspec.json.encode(_Seen(digest, written)))
        part.replace(path)
    return written
