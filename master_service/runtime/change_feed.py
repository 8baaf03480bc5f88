"""In-process publish and subscribe for changes of VMs, for blocking calls and the event stream of the API."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ChangeFeed:
    """Publishes uuids of VMs that may have changed. A subscriber gets every change since its subscription."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()

    def publish(self, uuids: Iterable[str]) -> None:
        """Publish that these VMs may have changed."""
        changed = tuple(uuids)
        for subscriber in self._subscribers:
            subscriber.add(changed)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Subscribe to changes from now on. Subscribe before reading the VMs, so that no change is missed."""
        subscription = Subscription()
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)


class Subscription:
    """The uuids that changed and were not taken yet, each once, so that a slow reader does not let it grow."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, uuids: Iterable[str]) -> None:
        """Add uuids."""
        self._pending.update(dict.fromkeys(uuids))
        if self._pending:
            self._some.set()

    async def wait(self, timeout_s: float) -> bool:
        """Wait for a change and drop all pending ones; return False without a change within the time."""
        try:
            # Not wait_for, which may lose a cancellation in Python 3.11.
            async with asyncio.timeout(timeout_s):
                await self.take()
        except TimeoutError:
            return False
        return True

    async def get(self, timeout_s: float) -> list[str]:
        """Return the changes since the last call; an empty list without any within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.take()
        except TimeoutError:
            return []

    async def take(self) -> list[str]:
        """Wait for a change, and return all changes since the last call."""
        await self._some.wait()
        taken, self._pending = list(self._pending), {}
        self._some.clear()
        return taken
