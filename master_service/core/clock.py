"""The wall clock as an argument, so that tests can replace it. Timeouts use asyncio's monotonic clock instead.

The wall clock may jump, by hand or by NTP. Times in the database are by this clock, because only it survives a restart.
`VM.clamp_to` handles times that are in the future, and `Jumps` detects a jump at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Final

Clock = Callable[[], datetime]
_JUMP_S: Final = 1.0
"""Seconds. A clock that is being adjusted differs by milliseconds between two calls."""


def utc_now() -> datetime:
    """Return the current time in UTC, with its time zone."""
    return datetime.now(UTC)


class Jumps:
    """Detects jumps of the wall clock by the event loop's clock, which does not jump."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._last: tuple[float, datetime, float] | None = None

    def seconds(self) -> float:
        """Return the seconds of a jump since the last call; 0 without a jump, and at the first call."""
        loop, before = asyncio.get_running_loop(), self._last
        # The wall clock is read between two readings of the loop's clock: a process stopped in between is no jump.
        earliest, wall, latest = self._last = (loop.time(), self._clock(), loop.time())
        if before is None:
            return 0.0
        passed = (wall - before[1]).total_seconds()
        apart = passed - min(max(passed, earliest - before[2]), latest - before[0])
        return apart if abs(apart) >= _JUMP_S else 0.0
