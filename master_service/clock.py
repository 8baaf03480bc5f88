"""The wall clock, passed in so that tests can have their own. Timeouts never use it: those are asyncio's, monotonic."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The time now, aware, in UTC."""
    return datetime.now(UTC)
