"""A plain QEMU under emulation, for tests of a guest itself: no libvirt, no Salt."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self, TextIO

from tests.lib.support import PATIENCE_S

POLL_S = 0.02


class Machine:
    """One run of a machine. Leaving the context ends it.

    `folder` gets its QMP socket and the log of its serial port. Times are seconds, and bounds are generous: a busy
    host fails no test.
    """

    def __init__(
        self, folder: Path, image: Path, fmt: str, *more: str, memory_mib: int = 16, bus: str = "virtio"
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._qmp = folder / "qmp"
        self._log = folder / "serial.log"
        self._argv = [
            *("qemu-system-x86_64", "-accel", "tcg", "-m", str(memory_mib), "-nodefaults", "-display", "none"),
            *("-vga", "std", "-drive", f"file={image},format={fmt},if={bus},cache=unsafe"),
            *("-serial", "stdio", "-qmp", f"unix:{self._qmp},server=on,wait=off", *more),
        ]

    def __enter__(self) -> Self:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._argv, stdin=subprocess.PIPE, stdout=log)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdin:
            self._process.stdin.close()

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait until qemu ends; its exit code."""
        return self._process.wait(timeout_s)

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    @property
    def output(self) -> str:
        """All that came out of the serial port so far."""
        return self._log.read_text("utf-8", "replace").replace("\r\n", "\n") if self._log.exists() else ""

    def expect(self, text: str, times: int = 1, timeout_s: float = PATIENCE_S) -> float:
        """Wait until the serial port has said `text` so many times; the seconds that it took."""
        begun = time.monotonic()
        until(lambda: self.output.count(text) >= times, timeout_s, lambda: f"no {text!r} in {self.output[-1000:]!r}")
        return time.monotonic() - begun

    def type(self, line: str) -> None:
        """Type a line into the serial console."""
        assert self._process.stdin
        self._process.stdin.write(f"{line}\n".encode())
        self._process.stdin.flush()

    def qmp(self, command: str, **arguments: object) -> Any:
        """Run a QMP command, and return its result."""
        with _connected(self._qmp) as stream, stream.makefile("rw", encoding="utf-8") as lines:
            lines.readline()  # the greeting
            for execute, given in (("qmp_capabilities", {}), (command, arguments)):
                lines.write(json.dumps({"execute": execute, "arguments": given}) + "\n")
                lines.flush()
                answer = _answer(lines)
            return answer

    @property
    def status(self) -> str:
        """QEMU's name for its state: running, guest-panicked, ..."""
        return str(self.qmp("query-status")["status"])


def until(holds: Callable[[], bool], timeout_s: float, otherwise: Callable[[], str]) -> None:
    """Wait until something holds, else fail with what `otherwise` says."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > deadline:
            raise AssertionError(otherwise())
        time.sleep(POLL_S)


def _connected(path: Path, timeout_s: float = PATIENCE_S) -> socket.socket:
    until(path.exists, timeout_s, lambda: f"qemu made no {path}")
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(timeout_s)
    stream.connect(str(path))
    return stream


def _answer(lines: TextIO) -> Any:
    """The answer to the last command; events in between are passed over."""
    for line in lines:
        message = json.loads(line)
        if "error" in message:
            raise AssertionError(message["error"])
        if "return" in message:
            return message["return"]
    raise AssertionError("qemu ended before it answered")
