"""Turn byte counts into progress, at a limited rate."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from worker_service.contract import Progress

_INTERVAL_S: Final = 0.5


def throttle(phase: str, publish: Callable[[Progress], None]) -> Callable[[int, int | None], None]:
    """Return a function that takes the bytes done and the total, and publishes the progress at most every 0.5 s.

    The last byte is always published. `publish` may raise to interrupt the transfer.
    """
    started = time.monotonic()
    last = 0.0

    def report(done: int, total: int | None) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _INTERVAL_S and done != total:
            return
        last = now
        rate = done / (now - started) if now > started else None
        eta = (total - done) / rate if rate and total else None
        publish(Progress(phase=phase, done=done, total=total, rate=rate, eta_s=eta))

    return report
