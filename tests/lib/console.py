"""The serial console of a VM on libvirt: read its output, type into it."""

import os
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from tests.lib.support import PATIENCE_S, eventually, virsh

PROMPT = "demo:~# "
"""Of the demo guest."""


class Console:
    """One VM's console. Its output is read from the VM's `console.log`, and input goes to its terminal."""

    def __init__(self, domain: str, log: Path) -> None:
        self._log = log
        # Kept open: QEMU checks once a second whether the terminal is open, and reads nothing from a closed one.
        self._terminal = os.open(virsh("ttyconsole", domain).strip(), os.O_RDWR | os.O_NOCTTY)
        threading.Thread(target=self._drain, daemon=True).start()

    def _drain(self) -> None:
        """Read the guest's output here as well: a terminal without a reader becomes full."""
        with suppress(OSError):
            while os.read(self._terminal, 4096):
                pass

    @property
    def output(self) -> str:
        """The whole output of the guest."""
        return self._log.read_bytes().decode("utf-8", "replace").replace("\r", "") if self._log.exists() else ""

    def wait(self, text: str, within_s: float = PATIENCE_S) -> None:
        """Wait until the output contains a text."""
        try:
            eventually(lambda: text in self.output, within_s)
        except AssertionError as err:
            raise AssertionError(f"{text!r} did not come; the console ends: {self.output[-1500:]}") from err

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self._terminal, f"{line}\n".encode())

    def go_on(self, boot: int = 1, within_s: float = PATIENCE_S) -> None:
        """Let the demo guest install its package `held`. `boot` numbers its boots: each one forgets it."""
        eventually(lambda: self.output.count(PROMPT) >= boot, within_s)
        self.type("touch /run/go-on")

    def ask(self, command: str, within_s: float = PATIENCE_S) -> str:
        """Run a command and return its output without the echo."""
        before = len(re.findall(r"<<.*?>>", self.output, re.DOTALL))
        # Quoted in two halves, so that the echo of the command is no answer.
        self.type(f"echo '<''<'; {command}; echo '>''>'")
        answers: Callable[[], list[str]] = lambda: re.findall(r"<<(.*?)>>", self.output, re.DOTALL)  # noqa: E731
        eventually(lambda: len(answers()) > before, within_s)
        return answers()[-1].strip()
