"""How many helpers work at once. Each kind of work has seats of its own: downloads never keep a save waiting."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from worker_service import durable
from worker_service.lifecycle import Step

KIND: Final[Mapping[Step, str]] = {
    Step.FETCH: "fetch",
    Step.BUILD: "boot",
    Step.BOOT: "boot",
    Step.SEAL: "save",
    Step.SAVE: "save",
}
"""The kind of work of a step; steps that are not here are quick and need no seat."""

_LOOK_S: Final = 0.05


@contextmanager
def seat(folder: Path, step: Step, seats: int, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold a seat for a step; waits for one, calling `waiting`, which may raise to leave the queue.

    A seat is an flock: a helper that dies frees it. What waits is durable in its record.
    """
    kind = KIND.get(step)
    if kind is None:
        yield
        return
    fd = None
    while fd is None:
        for number in range(seats):
            fd = durable.lock(folder / f"{kind}-{number}", wait=False)
            if fd is not None:
                break
        else:
            waiting()
            time.sleep(_LOOK_S)
    try:
        yield
    finally:
        os.close(fd)
