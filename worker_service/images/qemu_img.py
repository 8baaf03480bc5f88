"""Run qemu-img with every format and file stated, so that it never guesses one, as QEMU's user and within bounds.

qemu-img reads what guests and strangers wrote. As QEMU's user it can do no more than the QEMU that read it before. It
opens only the files whose descriptors it inherits, and gets no privilege by executing a program.
"""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from selectors import EVENT_READ, DefaultSelector
from typing import Final

from worker_service.core.errors import BadImage, TransferFailed
from worker_service.core.host import User
from worker_service.fs.advice import advice_on
from worker_service.images.overlay import SECTOR, Chain, file_node
from worker_service.transfer.registry import Report
from worker_service.transfer.uri import Form

_QCOW2: Final = Form()
_CPU_S: Final = 30
_LIMIT_S: Final = 60.0
_MIN_BYTES_PER_S: Final = 2 << 20
"""Lowest rate of flattening, for each second of the clock and of one processor. A slower one counts as hung."""
_MEMORY: Final = 1 << 30
_FLATTEN_MEMORY: Final = 4 << 30
"""Address space. Compressing has many threads, whose stacks count though they are not used."""
_METADATA: Final = 64 << 20
_CHECK_S: Final = 60.0
"""For the tables of the largest image with the smallest clusters. An image of 2 GiB takes 20 ms, a hostile one all."""
_LEAKS: Final = 3
_CORRUPT: Final = 2
_KEPT_OUTPUT: Final = 4096
_PERCENT: Final = re.compile(rb"\((\d+(?:\.\d+)?)/100%\)")

_ENDED_BY: Final[Mapping[str, str]] = {
    "SIGXCPU": ", as it used too much processor time",
    "SIGXFSZ": ", as its file grew larger than such a disk can be",
    "SIGKILL": ", perhaps by the kernel for want of memory: see its log",
}


def create_overlay(path: Path, base: Path, base_format: str, size: int, user: User | None = None) -> None:
    """Make a thin qcow2 on top of a base, which is not opened (`-u`). This takes the same time for any size."""
    _run("create", "-q", "-u", "-f", "qcow2", "-F", base_format, "-b", str(base), path=path, size=size, user=user)


def create_blank(path: Path, size: int, user: User | None = None) -> None:
    """Make an empty qcow2 of `size` bytes."""
    _run("create", "-q", "-f", "qcow2", path=path, size=size, user=user)


def flatten(chain: Chain, target: Path, report: Report, form: Form = _QCOW2, user: User | None = None) -> None:
    """Write a disk and everything below it into one file.

    A qcow2 gets compressed clusters if the form says so; a raw disk is never compressed here. On a full disk qemu-img
    exits with 1 and leaves an incomplete file that looks valid, so the target is removed after an error.
    `report` gets estimates of the bytes done and the total, and may raise to interrupt. Raises TransferFailed, and
    BadImage if the overlay's header has changed.
    """
    packed = ["-c", "-o", "compression_type=zstd"] if form.format == "qcow2" and form.compress else []
    shown = Path(chain.layers[0].path).name
    with ExitStack() as opened:
        own = [opened.enter_context(_lent(Path(layer.path), user)) for layer in chain.layers]
        chain.require_unchanged(own)
        for layer, disk in zip(chain.layers, own, strict=True):
            # It would read zeros in the places of what is missing, and call that a success.
            if layer.format == "qcow2" and (faults := _faults(disk, user)):
                raise BadImage(
                    f"{Path(layer.path).name} is damaged, and is not flattened: {faults} It stays as it is. Repair it, "
                    "for example with `qemu-img check -r all`, and call save_retry once saving has failed."
                )
        base = [opened.enter_context(_open(chain.base))] if chain.base else []
        size = chain.virtual_size(own)
        limit_s = _LIMIT_S + size / _MIN_BYTES_PER_S
        most = size + size // 1024 + _METADATA
        bounds = _bounds(user, cpu_s=int(limit_s) + 1, memory=_FLATTEN_MEMORY, file_bytes=most)
        made = opened.enter_context(_made_for(target, user))
        source = chain.node([_name(disk) for disk in own], _name(base[0]) if base else "")
        argv = ["qemu-img", "convert", "-f", chain.layers[0].format, "-O", form.format, "-p", *packed]
        process = opened.enter_context(_started([*bounds, *argv, source, _name(made)], [*own, *base, made]))
        _follow(process, sum(os.fstat(disk).st_size for disk in own), report, time.monotonic() + limit_s, shown)
        _, errors = process.communicate()
        if process.returncode != 0:
            raise TransferFailed(f"Flattening {shown} failed: {_ending(process.returncode, errors)}")
    try:
        _require_flat(target, form, size, user)
    except BadImage as err:
        target.unlink(missing_ok=True)
        raise TransferFailed(f"Flattening {shown} made a damaged file. {err} The disk itself is unchanged.") from err


def convert_to_vdi(base: Path, base_format: str, target: Path, size: int, user: User | None = None) -> None:
    """Write a base of a virtual size as VDI. An error leaves no file. Raises TransferFailed."""
    limit_s = _LIMIT_S + size / _MIN_BYTES_PER_S
    bounds = _bounds(user, cpu_s=int(limit_s) + 1, memory=_FLATTEN_MEMORY, file_bytes=size + size // 1024 + _METADATA)
    with _open(base) as source, _made_for(target, user) as made:
        argv = ["qemu-img", "convert", "-f", base_format, "-O", "vdi", "-p"]
        node = "json:" + json.dumps(file_node(base_format, _name(source)))
        with _started([*bounds, *argv, node, _name(made)], [source, made]) as process:
            _follow(process, size, lambda _done, _total: None, time.monotonic() + limit_s, base.name)
            _, errors = process.communicate()
        if process.returncode != 0:
            raise TransferFailed(f"Converting {base.name} failed: {_ending(process.returncode, errors)}")


def _require_flat(path: Path, form: Form, size: int, user: User | None) -> None:
    """Raise BadImage if a flattened disk is not complete."""
    if form.format == "qcow2":
        check(path, user)
    elif (found := path.stat().st_size) != -(-size // SECTOR) * SECTOR:
        raise BadImage(f"It has {found} bytes, not {size}. Check that disk.")


def check(path: Path, user: User | None = None) -> None:
    """Raise BadImage if a qcow2 refers to bytes behind its end, or if its tables contradict each other.

    This reads its tables and no data. Space in it that is merely lost is no fault. Raises TransferFailed if it hangs.
    """
    with _lent(path, user) as disk:
        if faults := _faults(disk, user):
            raise BadImage(
                f"It is cut off or damaged: {faults} Make or copy the file again, or repair it with "
                "`qemu-img check -r all`."
            )


def _faults(disk: int, user: User | None) -> str:
    """Return the first fault in the tables of a qcow2 as a sentence, or an empty string. `disk`: its descriptor."""
    bounds = _bounds(user, cpu_s=int(_CHECK_S), memory=_MEMORY, file_bytes=0)
    file = {"driver": "file", "filename": _name(disk)}
    node = "json:" + json.dumps({"driver": "qcow2", "file": file, "backing": None})
    with _started([*bounds, "qemu-img", "check", "-q", "-f", "qcow2", node], [disk]) as process:
        # An untrusted image has millions of faults, one a line: the first lines say enough.
        output = _read_to_end(process, time.monotonic() + 4 * _LIMIT_S)
        code = process.wait()
    if code in (0, _LEAKS):
        return ""
    faults = [line for line in output.decode(errors="replace").splitlines() if line.startswith("ERROR")]
    what = f"{faults[0].removeprefix('ERROR').strip(': .')}." if code == _CORRUPT and faults else _ending(code, output)
    return f"qemu-img check says: {what}"


def _read_to_end(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    """Return the beginning of what a process says on its error output. Raises TransferFailed at the deadline."""
    assert process.stderr is not None  # noqa: S101 - PIPE was asked for
    kept = b""
    with DefaultSelector() as output:
        output.register(process.stderr, EVENT_READ)
        while output.select(max(0.0, deadline - time.monotonic())):
            if not (chunk := os.read(process.stderr.fileno(), 1 << 16)):
                return kept
            kept += chunk[: _KEPT_OUTPUT - len(kept)]
    raise TransferFailed("Examining the image took too long. Check the disk here.")


def _follow(process: subprocess.Popen[bytes], total: int, report: Report, deadline: float, name: str) -> None:
    """Report the progress of qemu-img until it closes its output. Raises TransferFailed at the deadline."""
    assert process.stdout is not None  # noqa: S101 - PIPE was asked for
    with DefaultSelector() as output:
        output.register(process.stdout, EVENT_READ)
        while True:
            if not output.select(max(0.0, deadline - time.monotonic())):
                raise TransferFailed(f"Flattening {name} took too long. Check the disk here.")
            if not (chunk := os.read(process.stdout.fileno(), 4096)):
                return
            if percentages := _PERCENT.findall(chunk):
                report(int(float(percentages[-1]) / 100 * total), total)


@contextmanager
def _started(argv: Sequence[str], descriptors: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a process for the block. An error in the block kills it."""
    pipe, none = subprocess.PIPE, subprocess.DEVNULL
    with subprocess.Popen(argv, stdin=none, stdout=pipe, stderr=pipe, pass_fds=descriptors) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def _run(*argv: str, path: Path, size: int, user: User | None) -> None:
    """Run a short command that makes a file of that virtual size. Raises BadImage, TransferFailed."""
    bounds = _bounds(user, cpu_s=_CPU_S, memory=_MEMORY, file_bytes=_METADATA)
    with _made_for(path, user) as made:
        command = (*bounds, "qemu-img", *argv, _name(made), str(size))
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
                timeout=_LIMIT_S,
                pass_fds=[made],
            )
        except subprocess.TimeoutExpired as err:
            raise TransferFailed(f"qemu-img {argv[0]} took more than {_LIMIT_S:g} s. Check the disk here.") from err
        if done.returncode != 0:
            raise BadImage(f"qemu-img {argv[0]} failed: {_ending(done.returncode, done.stderr)}")


def _bounds(user: User | None, *, cpu_s: int, memory: int, file_bytes: int) -> list[str]:
    """Return the start of a command line: processor seconds, bytes of memory and of a file, and the user."""
    limits = ["prlimit", f"--cpu={cpu_s}:{cpu_s + 1}", f"--as={memory}", f"--fsize={file_bytes}", "--core=0", "--"]
    if user is None:
        return limits
    ids = ["--reuid", str(user.uid), "--regid", str(user.gid), "--clear-groups", "--inh-caps=-all"]
    return [*limits, "setpriv", *ids, "--no-new-privs", "--pdeathsig", "KILL", "--"]


@contextmanager
def _made_for(path: Path, user: User | None) -> Iterator[int]:
    """Yield the descriptor of a new file that QEMU's user may write to in the block.

    Afterwards it is root's; an error removes it.
    """
    path.unlink(missing_ok=True)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if user is not None:
            os.fchown(fd, user.uid, user.gid)
        yield fd
        if user is not None:
            os.fchown(fd, os.geteuid(), os.getegid())
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    finally:
        os.close(fd)


@contextmanager
def _lent(path: Path, user: User | None) -> Iterator[int]:
    """Yield the descriptor of a file of root's that QEMU's user may read during the block."""
    with _open(path) as fd:
        before = os.fstat(fd)
        try:
            if user is not None:
                os.fchown(fd, -1, user.gid)
                os.fchmod(fd, 0o640)
            yield fd
        finally:
            if user is not None:
                os.fchmod(fd, stat.S_IMODE(before.st_mode) & 0o700)
                os.fchown(fd, -1, before.st_gid)


@contextmanager
def _open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _name(fd: int) -> str:
    """Return a name for an inherited descriptor. It leads to exactly that file, whatever folders the user may pass."""
    return f"/proc/self/fd/{fd}"


def _ending(code: int, errors: bytes) -> str:
    """Return how qemu-img ended and what to do: its last words, or the bound that it broke."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"it was ended by {name}{_ENDED_BY.get(name, '')}."
    lines = errors.decode(errors="replace").strip().splitlines()
    lines = [line for line in lines if "corrupt" in line] or lines  # the last line is only its consequence
    words = lines[-1].removeprefix("qemu-img: ").rstrip(".") if lines else "no message"
    if words.startswith("Could not open '"):  # the name is a long node
        words = words.rpartition("': ")[2]
    return f"{words}. {advice_on(words)}".rstrip()
