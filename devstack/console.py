"""Output on the terminal: lines of progress, tables, and the one sentence of a failure."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

_BEGUN = time.monotonic()


class Trouble(Exception):
    """A step failed. The text is one sentence for the user: the failure, the remedy, and the log to read."""


def printable(text: str) -> str:
    """Return a text with escapes for all that is not printable: answers of the services are in it."""
    return "".join(
        each if each == "\n" or each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def say(line: str = "") -> None:
    """Print a line and flush, for pipes too."""
    print(printable(line), flush=True)


def progress(line: str) -> None:
    """Print a line of progress with the seconds since the command began."""
    say(f"[{time.monotonic() - _BEGUN:5.1f} s] {line}")


class Ticker:
    """Shows that a long wait goes on: `tick()` prints at most one line in `every_s` seconds."""

    def __init__(self, what: str, every_s: float = 5.0) -> None:
        self.what = what
        self.every_s = every_s
        self._shown = time.monotonic()

    def tick(self, detail: str = "") -> None:
        """Print what the command waits for, and a detail, if the last line is old enough."""
        if time.monotonic() - self._shown >= self.every_s:
            self._shown = time.monotonic()
            progress(f"  still waiting for {self.what}{f' ({detail})' if detail else ''}")


def table(rows: Sequence[Sequence[str]]) -> str:
    """Return a table with aligned columns; the first row is the heading."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def fail(trouble: Trouble) -> int:
    """Print the sentence of a failure; return the exit code."""
    print(f"saltern: {printable(str(trouble))}", file=sys.stderr, flush=True)
    return 1
