"""How much one caller may ask for: a token bucket for each, in memory only.

The library `limits` (5.8) has no token bucket, takes whole numbers a second, goes by the wall clock and remembers
callers without a bound.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable, Iterable
from typing import Final, Generic, TypeVar

_CALLERS: Final = 10_000
"""Callers remembered; the one not heard of longest is forgotten first, by when its bucket is full again."""

_Caller = TypeVar("_Caller", bound=Hashable)


class Limiter(Generic[_Caller]):
    """Lets each caller make `per_s` calls a second on average, and some at once.

    Args:
        per_s: calls per second.
        at_once: calls after a pause; by default those of two seconds.
    """

    def __init__(self, per_s: float, at_once: float | None = None) -> None:
        self._per_s = per_s
        self._size = max(1.0, 2 * per_s if at_once is None else at_once)
        self._buckets: OrderedDict[_Caller, tuple[float, float]] = OrderedDict()

    def wait_s(self, caller: _Caller, now: float) -> float:
        """Count a call at `now` (seconds): 0.0 when it may go on, else seconds until the next one may."""
        tokens = self._tokens(caller, now)
        allowed = tokens >= 1
        self._buckets.pop(caller, None)
        self._buckets[caller] = (tokens - allowed, now)
        while len(self._buckets) > _CALLERS:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_s

    def next_s(self, caller: _Caller, now: float) -> float:
        """Return the seconds until the next call may go on, without counting one."""
        return max(0.0, (1 - self._tokens(caller, now)) / self._per_s)

    def forget(self, caller: _Caller) -> None:
        """Let a caller begin again."""
        self._buckets.pop(caller, None)

    def callers(self) -> Iterable[_Caller]:
        """Return the callers in memory."""
        return list(self._buckets)

    def _tokens(self, caller: _Caller, now: float) -> float:
        tokens, at = self._buckets.get(caller, (self._size, now))
        return min(self._size, tokens + max(0.0, now - at) * self._per_s)  # the clock may have been set back
