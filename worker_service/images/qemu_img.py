"""Run qemu-img with every format stated (`-f`, `-F`), so that it never guesses one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path
from typing import Final

from worker_service.core.errors import BadImage, TransferFailed
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form

_QCOW2: Final = Form()
_BOUNDS: Final = ("prlimit", "--cpu=30:31", f"--as={1 << 30}", "--")
"""Processor seconds and bytes of memory for commands that only make a file. They read the header of a base."""
_LIMIT_S: Final = 60.0
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")


def create_overlay(path: Path, base: Path, base_format: str, size: int) -> None:
    """Make a thin qcow2 on top of a base. This takes the same time for any size."""
    _run("create", "-q", "-f", "qcow2", "-F", base_format, "-b", str(base), str(path), str(size))


def create_blank(path: Path, size: int) -> None:
    """Make an empty qcow2 of `size` bytes."""
    _run("create", "-q", "-f", "qcow2", str(path), str(size))


def flatten(overlay: Path, target: Path, report: Report, form: Form = _QCOW2) -> None:
    """Write a disk and everything below it into one file.

    A qcow2 gets compressed clusters if the form says so; a raw disk is never compressed here. On a full disk qemu-img
    exits with 1 and leaves an incomplete file that looks valid, so the target is removed after an error.
    `report` gets estimates of the bytes done and the total, and may raise to interrupt. Raises TransferFailed.
    """
    total = overlay.stat().st_size
    packed = ["-c", "-o", "compression_type=zstd"] if form.format == "qcow2" and form.compress else []
    argv = ["qemu-img", "convert", "-p", "-f", "qcow2", "-O", form.format, *packed, str(overlay), str(target)]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None  # noqa: S101 - PIPE was asked for
            while chunk := os.read(process.stdout.fileno(), 4096):
                if percentages := _PERCENT.findall(chunk):
                    report(int(float(percentages[-1]) / 100 * total), total)
            _, errors = process.communicate()
        except BaseException:
            process.kill()
            target.unlink(missing_ok=True)
            raise
    if process.returncode != 0:
        target.unlink(missing_ok=True)
        raise TransferFailed(f"Flattening {overlay.name} failed: {_last_line(errors)}. Check the free space there.")


def _run(*argv: str) -> None:
    """Run a short command within bounds, because a base may be malicious. Raises BadImage, TransferFailed."""
    command = (*_BOUNDS, "qemu-img", *argv)
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_LIMIT_S)
    except subprocess.TimeoutExpired as err:
        raise TransferFailed(f"qemu-img {argv[0]} took more than {_LIMIT_S:g} s. Check the disk here.") from err
    if done.returncode < 0:
        by = signal.Signals(-done.returncode).name
        raise BadImage(f"qemu-img {argv[0]} was ended by {by}: it used too much time or memory. Check the image.")
    if done.returncode != 0:
        raise BadImage(f"qemu-img {argv[0]} failed: {_last_line(done.stderr)}. Check the image and the free space.")


def _last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("qemu-img: ") if lines else "no message"
