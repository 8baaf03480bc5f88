"""A queue of keys after client-go's: each key is worked on once at a time, and any number of wake-ups collapse.

A key that is added during its work is marked dirty, and becomes ready again when that work is done. A thousand edits
of one VM cause at most two runs, and no edit is missed.
"""

from __future__ import annotations

import asyncio


class WorkQueue:
    """Keys to look at, each once however often it is added."""

    def __init__(self) -> None:
        self._ready: dict[str, None] = {}
        self._processing: set[str] = set()
        self._dirty: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._some = asyncio.Event()

    def add(self, key: str) -> None:
        """Make a key ready."""
        if timer := self._timers.pop(key, None):
            timer.cancel()  # the work now replaces the later work, and sets the next timer
        if key in self._processing:
            self._dirty.add(key)
            return
        self._ready[key] = None
        self._some.set()

    def add_after(self, key: str, delay_s: float) -> None:
        """Make a key ready in `delay_s` seconds. Of several timers the earliest is kept."""
        self.add_at(key, asyncio.get_running_loop().time() + max(0.0, delay_s))

    def add_at(self, key: str, due: float) -> None:
        """Make a key ready at a time of the loop's clock. Keys with the same time become ready together."""
        known = self._timers.get(key)
        if known is not None and known.when() <= due:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(due, self.add, key)

    async def take(self) -> list[str]:
        """Wait for ready keys and return them all. Call `done` for each after the work on it."""
        while not self._ready:
            self._some.clear()
            await self._some.wait()
        taken, self._ready = list(self._ready), {}
        self._processing.update(taken)
        return taken

    def done(self, key: str) -> None:
        """End the work on a key. If it was added meanwhile, it is ready again."""
        self._processing.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def close(self) -> None:
        """Cancel all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    @property
    def idle(self) -> bool:
        """Whether no key is ready or worked on. Timers may still be set."""
        return not (self._ready or self._processing)
