"""An event loop in virtual time: when no task is ready, the clock jumps to the time of the next one.

SQLite runs in the loop's own thread, so nothing else decides about an order: a scenario repeats to the byte.
"""

import asyncio
import selectors
from datetime import UTC, datetime, timedelta

import aiosqlite.core
import apscheduler.schedulers.base
import apscheduler.triggers.interval

BEGIN = datetime(2026, 1, 1, tzinfo=UTC)


class VirtualLoop(asyncio.SelectorEventLoop):
    """`time()` begins at 0 s and passes only when no task is ready."""

    def __init__(self) -> None:
        self.at = 0.0
        self.jumped = timedelta()
        """How far the wall clock is from where it would be without its jumps."""
        super().__init__(_Selector(self))

    def time(self) -> float:
        return self.at


class _Selector(selectors.DefaultSelector):
    def __init__(self, loop: VirtualLoop) -> None:
        super().__init__()
        self._loop = loop

    def select(self, timeout=None):
        if found := super().select(0):
            return found
        assert timeout is not None, "everybody waits for something that will never come"
        self._loop.at += timeout
        return []


LOCKED: list[str] = []
"""Calls that found SQLite locked: another task waits for the loop in the middle of a transaction. It must not, because
this loop then stands still until SQLite gives up, and the call fails for no fault of the scenario."""


class _Inline:
    """Replaces aiosqlite's queue to a thread: a queued call runs at once."""

    def put_nowait(self, job) -> None:
        future, function = job
        try:
            result = function()
        except BaseException as err:  # noqa: BLE001 - as aiosqlite's own thread does
            if "database is locked" in str(err):
                LOCKED.append(repr(function))
            future.set_exception(err)
        else:
            if future is not None:
                future.set_result(result)


class _NoThread:
    daemon = True

    def __init__(self, **_target: object) -> None:
        pass

    def start(self) -> None:
        pass


def clock() -> datetime:
    """The wall clock of a scenario."""
    loop = asyncio.get_running_loop()
    return BEGIN + loop.jumped + timedelta(seconds=loop.time())


class _VirtualDatetime(datetime):
    @classmethod
    def now(cls, tz=None):
        return clock().astimezone(tz)


def install(monkeypatch) -> None:
    """Have SQLite and APScheduler live in the loop's time, until the test ends."""
    monkeypatch.setattr(aiosqlite.core, "SimpleQueue", _Inline)
    monkeypatch.setattr(aiosqlite.core, "Thread", _NoThread)
    for module in (apscheduler.schedulers.base, apscheduler.triggers.interval):
        monkeypatch.setattr(module, "datetime", _VirtualDatetime)
