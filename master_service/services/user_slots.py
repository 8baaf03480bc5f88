"""How many long requests each user may have at the same time: event streams, and verbs that wait for their effect."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from master_service.core.errors import TooMany


class UserSlots:
    """Slots for one kind of request.

    Args:
        most: slots of each user.
        kind: what takes them, in the plural.
    """

    def __init__(self, most: int, kind: str) -> None:
        self._most = most
        self._kind = kind
        self._taken = Counter[str]()

    @contextmanager
    def taken(self, user: str) -> Iterator[None]:
        """Take a slot of this user until the block ends. Raises TooMany when all are taken."""
        if self._taken[user] >= self._most:
            raise TooMany(f"{user} has {self._most} {self._kind}, which is the limit for one user.", "End one of them.")
        self._taken[user] += 1
        try:
            yield
        finally:
            self._taken[user] -= 1
            if not self._taken[user]:
                del self._taken[user]
