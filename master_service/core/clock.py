"""The wall clock, passed in so that tests can have their own. Timeouts never use it: those are asyncio's, monotonic.

It may jump, by hand or by NTP. What is kept in the database is by this clock nevertheless, since only that survives a
restart: `facts.VM.not_after` says what becomes of times that are still to come, `Jumps` notices a jump at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

Clock = Callable[[], datetime]
_JUMP_S: Final = 1.0
"""Clocks that are being adjusted run apart by thousandths between two looks."""


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)


class Jumps:
    """Notices when the wall clock jumped, by the loop's own clock, which does not."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[float, datetime, float] | None = None

    def seconds(self) -> float:
        """By how much it has jumped since this was asked last; 0 for what is no jump, and the first time."""
        loop, before = asyncio.get_running_loop(), self._last
        # Looked at in between: a process that is stopped between two looks takes that for no jump.
        earliest, wall, latest = self._last = (loop.time(), self._clock(), loop.time())
        if before is None:
            return 0.0
        passed = (wall - before[1]).total_seconds()
        apart = passed - min(max(passed, earliest - before[2]), latest - before[0])
        return apart if abs(apart) >= _JUMP_S else 0.0
