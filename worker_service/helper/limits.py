"""How many helpers work at once. Each kind of work has seats of its own: downloads never keep a save waiting.

Nobody sits and waits for a seat. Who finds none leaves, and the work stays pending in the VM's record; who frees one
looks for whoever waits longest. The watcher's tick finds those whom a crash made them forget.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from worker_service.fs import locks
from worker_service.state.lifecycle import Step

JOB_KIND: Final[Mapping[Step, str]] = {
    Step.FETCH: "fetch",
    Step.BUILD: "boot",
    Step.BOOT: "boot",
    Step.FLATTEN: "save",
    Step.SAVE: "save",
}
"""The kind of work of a step; steps that are not here are quick and need no seat."""


def acquire(folder: Path, kind: str, seats: int) -> int | None:
    """A descriptor that holds a free seat, None where all are taken. A seat is an flock: the dead leave theirs."""
    for number in range(seats):
        if (fd := locks.lock(folder / f"{kind}-{number}", wait=False)) is not None:
            return fd
    return None


class JobLimits:
    """The seats of a worker, as one helper sees them.

    Args:
        folder: where the seats are.
        count: seats of each kind.
        inherited: kind and descriptor of the seat that the helper was born with.
    """

    def __init__(self, folder: Path, count: int, inherited: tuple[str, int] | None = None) -> None:
        self._folder = folder
        self._count = count
        self._inherited = inherited

    def is_exhausted(self, step: Step) -> bool:
        """Whether there is no seat for a step now."""
        kind = JOB_KIND.get(step)
        if kind is None:
            return False
        fd = acquire(self._folder, kind, self._count)
        if fd is not None:
            locks.unlock(fd)
        return fd is None

    @contextmanager
    def slot(self, step: Step) -> Iterator[bool]:
        """Hold a seat for a step; yields whether there was one."""
        kind = JOB_KIND.get(step)
        if kind is None:
            self.release()
            yield True
            return
        fd = self._inherited[1] if self._inherited and self._inherited[0] == kind else None
        if fd is None:
            self.release()
            fd = acquire(self._folder, kind, self._count)
        self._inherited = None
        try:
            yield fd is not None
        finally:
            if fd is not None:
                locks.unlock(fd)

    def release(self) -> None:
        """Give up the seat that the helper was born with, if it has not used it."""
        if self._inherited:
            locks.unlock(self._inherited[1])
            self._inherited = None
