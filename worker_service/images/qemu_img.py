"""qemu-img by argv, with every format stated (`-f`, `-F`): it never guesses."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path
from typing import Final

from worker_service.errors import BadImage, TransferFailed
from worker_service.images.schemes import Report
from worker_service.images.uri import Form

_QCOW2: Final = Form()
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


def create_overlay(path: Path, base: Path, base_format: str, size: int) -> None:
    """A thin qcow2 on top of a base; its time does not depend on the size."""
    _run("create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(path), str(size))


def create_blank(path: Path, size: int) -> None:
    """An empty qcow2 of `size` bytes."""
    _run("create", "-q", "-f", "qcow2", str(path), str(size))


def flatten(overlay: Path, target: Path, report: Report, form: Form = _QCOW2) -> None:
    """Write a disk with all that lies below it into one file that needs no other.

    A qcow2 gets compressed clusters where the form says so; a raw disk is never compressed here.
    qemu-img exits with 1 on a full disk and leaves a plausible half: the target is removed then.
    Raises TransferFailed. `report` is called with bytes done of bytes in all (estimates) and may raise to interrupt.
    """
    total = overlay.stat().st_size
    packed = ["-c", "-o", "compression_type=zstd"] if form.format == "qcow2" and form.compress else []
    argv = ["qemu-img", "convert", "-p", "-f", "qcow2", "-O", form.format, *packed, str(overlay), str(target)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - PIPE was asked for
            while chunk := os.read(process.stdout.fileno(), 4096):
                if seen := _PERCENT.findall(chunk):
                    report(int(float(seen[-1]) / 100 * total), total)
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            target.unlink(missing_ok=True)
            raise
    if process.returncode != 0:
        target.unlink(missing_ok=True)
        raise TransferFailed(f"Flattening {overlay.name} failed: {_last_line(errors)}. Check the free space there.")


def _run(*argv: str) -> None:
    done = subprocess.run(("qemu-img", *argv), stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if done.returncode != 0:
        raise BadImage(f"qemu-img {argv[0]} failed: {_last_line(done.stderr)}. Check the image and the free space.")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ") if lines else "no message"
