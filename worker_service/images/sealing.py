"""A disk made into the one file that its target asks for."""

from __future__ import annotations

from pathlib import Path

from worker_service.images import compression, qemu_img
from worker_service.images.schemes import Report
from worker_service.images.uri import Form


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
