"""What the guest writes to its serial ports, in the logs of its VM.

VirtualBox empties the file of a serial port at each start, and the text of earlier boots counts. So it gets a file of
its own, and what is new there is appended to the log: at each look at the VM, and before its next start.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker_service.fs import locks

NAMES: Final = ("console.log", "agent.log")
_CHUNK: Final = 1 << 20


def collect(folder: Path, *, restart: bool = False) -> None:
    """Append what is new in VirtualBox's folder of a VM to the logs beside it.

    Args:
        folder: VirtualBox's folder. The logs are in the folder around it.
        restart: empty the files afterwards, because the next run begins.
    """
    for name in NAMES:
        with suppress(FileNotFoundError):
            _collect(folder / name, folder.parent / name, restart=restart)


def _collect(source: Path, log: Path, *, restart: bool) -> None:
    noted = source.with_suffix(".copied")
    if not restart and source.stat().st_size == _number(noted):
        return
    with locks.locked(source.with_suffix(".lock")), source.open("r+b") as file:
        at = _number(noted)
        if at > os.fstat(file.fileno()).st_size:  # emptied past this module
            at = 0
        file.seek(at)
        with log.open("ab") as whole:
            while chunk := file.read(_CHUNK):
                whole.write(chunk)
                at += len(chunk)
        if restart:
            file.truncate(0)
            at = 0
        noted.write_text(str(at))


def _number(noted: Path) -> int:
    try:
        return int(noted.read_text())
    except (FileNotFoundError, ValueError):
        return 0
