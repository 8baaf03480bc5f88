"""`--cost` prints the time that each file and the most expensive tests took, and their processor time.

Processor time is that of the whole sandbox: QEMU, libvirtd, Salt, helpers. The rest is waiting, which other test
processes use.
"""

import os
import time
from collections import defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Final, NamedTuple

import pytest

_TICK: Final = os.sysconf("SC_CLK_TCK")
_KEY: Final = "cost"
_FILES, _TESTS = 400, 40


class Cost(NamedTuple):
    """Seconds."""

    wall: float = 0.0
    work: float = 0.0

    def plus(self, other: "Cost") -> "Cost":
        return Cost(self.wall + other.wall, self.work + other.work)


def work() -> float:
    """Return the processor time of all processes of this PID namespace so far, in seconds. Process 1 reaps orphans."""
    ticks = 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                ticks += sum(map(int, (entry / "stat").read_text().rpartition(")")[2].split()[11:15]))
    return ticks / _TICK


class Meter:
    """Plugin of a process that runs tests. It adds the cost of each phase to the report."""

    def __init__(self) -> None:
        self._last = Cost(time.monotonic(), work())

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(self):
        report = (yield).get_result()
        now = Cost(time.monotonic(), work())
        report.user_properties.append((_KEY, (now.wall - self._last.wall, now.work - self._last.work)))
        self._last = now


class Table:
    """Plugin of the process that reports. It adds up the costs and prints them."""

    def __init__(self) -> None:
        self._of: dict[str, Cost] = defaultdict(Cost)

    def pytest_runtest_logreport(self, report):
        for cost in [value for name, value in report.user_properties if name == _KEY][-1:]:
            self._of[report.nodeid.partition("@")[0]] = self._of[report.nodeid.partition("@")[0]].plus(Cost(*cost))

    def pytest_terminal_summary(self, terminalreporter):
        files: dict[str, Cost] = defaultdict(Cost)
        for test, cost in self._of.items():
            files[test.partition("::")[0]] = files[test.partition("::")[0]].plus(cost)
        total = Cost(*map(sum, zip(*files.values(), strict=True))) if files else Cost()
        terminalreporter.section("cost of tests: seconds, and seconds of processor time")
        for costs, most in ((files, _FILES), (self._of, _TESTS)):
            for name, cost in sorted(costs.items(), key=lambda each: -each[1].work)[:most]:
                terminalreporter.write_line(f"{cost.wall:8.1f} {cost.work:8.1f}  {name}")
            terminalreporter.write_line("")
        terminalreporter.write_line(f"{total.wall:8.1f} {total.work:8.1f}  all")


def register(config: pytest.Config) -> None:
    """Register the plugins that this process needs."""
    if not config.option.tx:
        config.pluginmanager.register(Meter())
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Table())
