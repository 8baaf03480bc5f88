"""The time of a guest's last progress: the last change of its report. A guest in a boot loop writes for ever."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.guest_agent.report import Report

_FILE: Final = "agent.progress.json"


class _Observed(msgspec.Struct, frozen=True):
    """Digest of a report, and the time of its first observation in seconds since the epoch."""

    report: str
    at: float


def changed_at(folder: Path, instance_id: str, report: Report, written: float) -> float:
    """Return when the report of a guest last changed, in seconds since the epoch.

    A file beside the log remembers it. The file is not durable: if it is lost, the guest's time limit starts again.

    Args:
        folder: the VM's folder.
        instance_id: the VM's instance; a report of an earlier instance does not count.
        report: the present report.
        written: time of the last write to the log, in seconds since the epoch.
    """
    path = folder / _FILE
    digest = hashlib.sha256(msgspec.json.encode((instance_id, report))).hexdigest()
    with suppress(FileNotFoundError, msgspec.MsgspecError):
        observed = msgspec.json.decode(path.read_bytes(), type=_Observed)
        if observed.report == digest:
            return observed.at
    with suppress(OSError):
        part = path.with_name(f".{_FILE}.part")
        part.write_bytes(msgspec.json.encode(_Observed(digest, written)))
        part.replace(path)
    return written
