"""What the terminal shows: lines of progress, tables, and the one sentence of a failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

_BEGUN = time.monotonic()


class Trouble(Exception):
    """A step failed. The text is one sentence for the user: what happened, what to do, which log to read."""


def say(line: str = "") -> None:
    """Print a line at once, also into a pipe."""
    print(line, flush=True)


def tell(line: str) -> None:
    """Print a line of progress with the seconds since the command began."""
    say(f"[{time.monotonic() - _BEGUN:5.1f} s] {line}")


class Ticker:
    """Shows that a long wait is still a wait: `tick()` prints a line, at most one in `every_s` seconds."""

    def __init__(self, what: str, every_s: float = 5.0) -> None:
        self.what = what
        self.every_s = every_s
        self._shown = time.monotonic()

    def tick(self, detail: str = "") -> None:
        """Say what is waited for, and why, if it is time to say something again."""
        if time.monotonic() - self._shown >= self.every_s:
            self._shown = time.monotonic()
            tell(f"  still waiting for {self.what}{f' ({detail})' if detail else ''}")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned to their widest cell; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def fail(trouble: Trouble) -> int:
    """Print the sentence of a failure; return the exit code."""
    print(f"saltern: {trouble}", file=sys.stderr, flush=True)
    return 1
