"""A queue of keys after client-go's: a key is worked on by one at a time, and any number of wake-ups collapse.

A key added while it is being worked on is not handed out twice: it is marked dirty, and comes back once it is done.
So a thousand edits of one VM cause at most two runs, and none of them is missed.
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
        """Ask for a look at a key."""
        if timer := self._timers.pop(key, None):
            timer.cancel()  # a look now answers what the later one was for, and sets the next
        if key in self._processing:
            self._dirty.add(key)
            return
        self._ready[key] = None
        self._some.set()

    def add_after(self, key: str, delay_s: float) -> None:
        """Ask for a look in `delay_s` seconds; of several such wishes the earliest is kept."""
        self.add_at(key, asyncio.get_running_loop().time() + max(0.0, delay_s))

    def add_at(self, key: str, due: float) -> None:
        """The same at a time of the loop's clock: keys with the very same time become ready together."""
        known = self._timers.get(key)
        if known is not None and known.when() <= due:
            return
        if known is not None:
            known.cancel()
        self._timers[key] = asyncio.get_running_loop().call_at(due, self.add, key)

    async def take(self) -> list[str]:
        """All keys that are ready, now being worked on; waits until there is one. Call `done` for each."""
        while not self._ready:
            self._some.clear()
            await self._some.wait()
        taken, self._ready = list(self._ready), {}
        self._processing.update(taken)
        return taken

    def done(self, key: str) -> None:
        """The work on a key has ended; if it was added meanwhile it is ready again."""
        self._processing.discard(key)
        if key in self._dirty:
            self._dirty.discard(key)
            self.add(key)

    def close(self) -> None:
        """Forget all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    @property
    def idle(self) -> bool:
        """Whether nothing is ready and nothing is worked on; timers may still be set."""
        return not (self._ready or self._processing)
