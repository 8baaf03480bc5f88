"""How much one caller may ask for: a token bucket for each, in memory only.

The library `limits` (5.8) has no token bucket, takes whole numbers a second, goes by the wall clock and remembers
callers without a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

_CALLERS: Final = 10_000
"""Callers remembered; the one not heard of longest is forgotten first, by when its bucket is full again."""


class Limiter:
    """Lets each caller make `per_s` calls a second on average, and twice as many at once.

    Args:
        per_s: calls per second.
    """

    def __init__(self, per_s: float) -> None:
        self._per_s = per_s
        self._size = max(1.0, 2 * per_s)
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: str, now: float) -> float:
        """Count a call at `now` (monotonic seconds): 0.0 when it may go on, else seconds until the next one may."""
        tokens, at = self._buckets.pop(caller, (self._size, now))
        tokens = min(self._size, tokens + (now - at) * self._per_s)
        allowed = tokens >= 1
        self._buckets[caller] = (tokens - allowed, now)
        while len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s
