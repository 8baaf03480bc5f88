"""Call other programs with a log, and write files that are complete or absent."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from devstack.console import Trouble

PACKAGE_OF: Final = {
    "apt-cache": "apt",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "debugfs": "e2fsprogs",
    "mcopy": "mtools",
    "mformat": "mtools",
    "mke2fs": "e2fsprogs",
    "mmdebstrap": "mmdebstrap",
    "mtype": "mtools",
    "nasm": "nasm",
    "qemu-img": "qemu-utils",
    "syslinux": "syslinux",
}
"""The Debian package of each program that builds the guests."""

_TAIL: Final = 200


def run(argv: Sequence[str | Path], *, log: Path | None = None, cwd: Path | None = None) -> bytes:
    """Run a program to its end and return what it wrote to standard output.

    The log, if there is one, gets the command and all output. Raises Trouble when the program is missing or fails.
    """
    words = [os.fspath(word) for word in argv]
    program = words[0]
    try:
        done = subprocess.run(
            words, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, env=_environment(), check=False
        )
    except FileNotFoundError as err:
        package = PACKAGE_OF.get(program, program)
        raise Trouble(f"{program} is not installed; run: apt-get install {package}") from err
    if log:
        with log.open("ab") as file:
            file.write(f"$ {shlex.join(words)}\n".encode() + done.stdout + done.stderr)
    if done.returncode:
        message = (done.stderr or done.stdout).decode("utf-8", "replace").strip()[-_TAIL:]
        where = f"; the log is {log}" if log else ""
        raise Trouble(f"{program} failed with code {done.returncode}: {message or 'no message'}{where}")
    return done.stdout


@contextmanager
def appearing(path: Path) -> Iterator[Path]:
    """Yield the name of a `.part` file to write; rename it to `path` at the end, or remove it after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def convert(source: Path, source_format: str, target: Path, target_format: str, *, log: Path | None = None) -> None:
    """Copy a disk image into another format. Formats are always stated, because a guest may have written any header."""
    run(["qemu-img", "convert", "-f", source_format, "-O", target_format, source.resolve(), target.resolve()], log=log)


def _environment() -> dict[str, str]:
    # Without MTOOLS_SKIP_CHECK, mtools refuses a partition that does not end on a track.
    return os.environ | {"LC_ALL": "C.UTF-8", "MTOOLS_SKIP_CHECK": "1"}
