"""Limits on parallel jobs. Each kind of job has slots of its own, so downloads never delay a save.

Helpers never block on a slot. If no slot is free, the helper exits and the step stays pending in the VM's record. The
process that releases a slot starts the helper that has waited longest. The watcher's tick starts the helpers that a
crash made it forget.
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
"""The kind of job of each step. The other steps are quick and need no slot."""


def acquire(folder: Path, kind: str, count: int) -> int | None:
    """Return a descriptor that holds a free slot, or None if all are taken.

    A slot is a file lock: the kernel releases it when its holder dies.
    """
    for number in range(count):
        if (fd := locks.lock(folder / f"{kind}-{number}", wait=False)) is not None:
            return fd
    return None


def has_free_slot(folder: Path, kind: str | None, count: int) -> bool:
    """Return whether a slot of a kind is free now. A job without a kind needs none."""
    if kind is None:
        return True
    fd = acquire(folder, kind, count)
    if fd is not None:
        locks.unlock(fd)
    return fd is not None


class JobLimits:
    """The slots of a worker, as one helper sees them.

    Args:
        folder: the folder of the slots.
        count: the number of slots of each kind.
        inherited: kind and descriptor of the slot that the helper inherited.
    """

    def __init__(self, folder: Path, count: int, inherited: tuple[str, int] | None = None) -> None:
        self._folder = folder
        self._count = count
        self._inherited = inherited

    def is_exhausted(self, step: Step) -> bool:
        """Return whether all slots for a step are taken now."""
        return not has_free_slot(self._folder, JOB_KIND.get(step), self._count)

    @contextmanager
    def slot(self, step: Step) -> Iterator[bool]:
        """Hold a slot for a step; yield whether one was free."""
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
        """Release the inherited slot if the helper has not used it."""
        if self._inherited:
            locks.unlock(self._inherited[1])
            self._inherited = None
