"""Timing with a comparison in the same run. The results are ratios, because machines differ and are noisy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from devstack.console import say, table

_AT_HAND = 5 << 30
"""Bytes: more than any way fills the page cache with."""
_PAUSE_S = 10.0
_TOUCH = "import sys, mmap; mmap.mmap(-1, int(sys.argv[1]), mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)"


@dataclass(frozen=True)
class Row:
    """One line of a benchmark's table: the measurement, its comparison, and the bound."""

    what: str
    measured: str
    compared: str
    ratio: float
    bound: float
    at_least: bool = False

    @property
    def kept(self) -> bool:
        """Return whether the bound is kept."""
        return self.ratio >= self.bound if self.at_least else self.ratio <= self.bound

    def cells(self) -> tuple[str, ...]:
        """The row as text."""
        sign = ">=" if self.at_least else "<="
        bound = f"{sign} {self.bound:g}"
        return self.what, self.measured, self.compared, f"{self.ratio:.2f}", bound, "yes" if self.kept else "NO"


HEAD = ("WHAT", "MEASURED", "COMPARED WITH", "RATIO", "WANTED", "KEPT")


def show(title: str, rows: list[Row]) -> None:
    """Print a table."""
    say(f"\n{title}\n")
    say(table([HEAD, *(row.cells() for row in rows)]))


def seconds(act: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    begin = time.perf_counter()
    act()
    return time.perf_counter() - begin


def memory_at_hand() -> None:
    """Fill free memory before a measurement that fills the page cache.

    In a virtual machine, memory that was free for two seconds may belong to the host again. Writing to it takes eight
    times as long. A measurement after a pause would include that time.
    """
    subprocess.run([sys.executable, "-c", _TOUCH, str(_AT_HAND)], check=True)


def memory_given_back() -> None:
    """Return free memory to the host of a virtual machine, as after a long time without saves."""
    time.sleep(_PAUSE_S)


def rounds(count: int, ways: Mapping[str, Callable[[int], float]]) -> dict[str, list[float]]:
    """Run each way once a round, in turns, so that a disturbance of the machine affects all of them."""
    taken: dict[str, list[float]] = {name: [] for name in ways}
    names = list(ways)
    for number in range(count):
        shift = number % len(names)
        for name in names[shift:] + names[:shift]:
            taken[name].append(ways[name](number))
    return taken


def median(values: list[float]) -> float:
    """The middle one."""
    return statistics.median(values)


def percentile(values: list[float], share: float) -> float:
    """The value that `share` of all stay at or below."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]
