"""A disk made into the one file that its target asks for."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from worker_service import durable
from worker_service.images import compression, qemu_img
from worker_service.images.schemes import Report
from worker_service.images.uri import Form

_CHUNK: Final = 1 << 20


def flatten(overlay: Path, target: Path, form: Form, report: Report) -> None:
    """Write a disk, with all that lies below it, in a form. Nothing is left where it fails. Raises TransferFailed.

    A compressed raw disk passes through a raw one beside it, full of holes: qemu-img cannot write into a stream.
    """
    if form.format == "qcow2" or not form.compress:
        qemu_img.flatten(overlay, target, report, form)
        return
    raw = target.with_suffix(".raw.part")
    try:
        qemu_img.flatten(overlay, raw, report, form)
        compression.pack(raw, target, report)
    finally:
        raw.unlink(missing_ok=True)


def sealed(path: Path, report: Report) -> str:
    """Make a file durable and read-only; returns its sha256. The disk writes while the processor reads."""
    path.chmod(0o400)
    with ThreadPoolExecutor(1) as other:
        synced = other.submit(durable.sync_file, path)
        digest = _digest(path, report)
        synced.result()
    return digest


def _digest(path: Path, report: Report) -> str:
    digest = hashlib.sha256()
    total = path.stat().st_size
    done = 0
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            report(done, total)
    return digest.hexdigest()
