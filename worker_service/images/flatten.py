"""Flatten a disk: write it and everything below it into one file, in the form that its target asks for."""

from __future__ import annotations

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from worker_service.core.errors import TransferFailed
from worker_service.core.host import User
from worker_service.fs import atomic_files, verify
from worker_service.images import compression, qemu_img
from worker_service.images.overlay import Chain
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form

_CHUNK: Final = 1 << 20


def flatten(chain: Chain, target: Path, form: Form, report: Report, user: User | None = None) -> None:
    """Flatten a disk; qemu-img runs as `user`. An error leaves no file. Raises TransferFailed, BadImage.

    A compressed raw disk needs a sparse raw file beside the target, because qemu-img cannot write into a stream.
    """
    if form.format == "qcow2" or not form.compress:

        def write_early(done: int, total: int | None) -> None:
            atomic_files.start_writing(target)
            report(done, total)

        qemu_img.flatten(chain, target, write_early, form, user)
        return
    raw = target.with_suffix(".raw.part")
    try:
        qemu_img.flatten(chain, raw, report, form, user)
        compression.pack(raw, target, report)
    finally:
        raw.unlink(missing_ok=True)


def digest_of_flat(path: Path, report: Report) -> str:
    """Make a file durable and read-only; return its sha256. Raises TransferFailed if the disk has other bytes.

    The bytes in memory, which were written, and the bytes on the disk are digested at the same time.
    """
    path.chmod(0o400)
    interrupted = threading.Event()
    with ThreadPoolExecutor(1) as executor:
        read_back = executor.submit(_digest_on_disk, path, interrupted)
        try:
            written = _digest(path, report)
        except BaseException:
            interrupted.set()
            raise
        if (found := read_back.result()) != written:
            raise TransferFailed(f"{path.name} reads back as sha256 {found}, not {written}. Check that disk.")
    return written


def _digest_on_disk(path: Path, interrupted: threading.Event) -> str:
    def check_interrupted(_: int) -> None:
        if interrupted.is_set():
            raise InterruptedError

    with path.open("rb") as file:
        os.fsync(file.fileno())
        return verify.digest_on_disk(file.fileno(), report=check_interrupted)


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
