"""Who waits for news of a VM hears of it here: blocking calls and the event stream of the API. In this process only."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class ChangeFeed:
    """Tells subscribers which VMs may have changed. Loses nothing while subscribed; remembers nothing before."""

    def __init__(self) -> None:
        self._subscribers: set[Subscription] = set()

    def publish(self, uuids: Iterable[str]) -> None:
        """Say that these VMs may have changed."""
        told = tuple(uuids)
        for subscriber in self._subscribers:
            subscriber.add(told)

    @contextmanager
    def subscribe(self) -> Iterator[Subscription]:
        """Hear of changes from now on. Subscribe first, look second: then nothing falls in between."""
        subscription = Subscription()
        self._subscribers.add(subscription)
        try:
            yield subscription
        finally:
            self._subscribers.discard(subscription)


class Subscription:
    """Uuids that changed and were not taken yet, each once: a slow reader does not make it grow."""

    def __init__(self) -> None:
        self._pending: dict[str, None] = {}
        self._some = asyncio.Event()

    def add(self, uuids: Iterable[str]) -> None:
        """Add uuids."""
        self._pending.update(dict.fromkeys(uuids))
        if self._pending:
            self._some.set()

    async def wait(self, timeout_s: float) -> bool:
        """Forget what changed so far once anything has; False when nothing has within the time."""
        try:
            # Not wait_for: in Python 3.11 it may lose a cancellation.
            async with asyncio.timeout(timeout_s):
                await self.take()
        except TimeoutError:
            return False
        return True

    async def get(self, timeout_s: float) -> list[str]:
        """All that changed since the last take; empty when nothing has within the time."""
        try:
            async with asyncio.timeout(timeout_s):
                return await self.take()
        except TimeoutError:
            return []

    async def take(self) -> list[str]:
        """All that changed since the last take; waits until there is something."""
        await self._some.wait()
        taken, self._pending = list(self._pending), {}
        self._some.clear()
        return taken
