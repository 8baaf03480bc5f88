"""Hash passwords with argon2id, in threads, a few at a time. An unknown user takes the same time as a known one.

Each source of requests has a part of the places in the queue, so that others still find one.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final, TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from master_service.core.errors import TooMany

_AT_ONCE: Final = 2
"""Each needs 64 MiB, and some 10 ms of several processors."""

_MOST_WAITING: Final = 20
_MOST_OF_A_SOURCE: Final = 4
_T = TypeVar("_T")


class Passwords:
    """Computes and verifies digests of passwords."""

    def __init__(self) -> None:
        self._hash = PasswordHash((Argon2Hasher(),))
        self._dummy = ""
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = Counter[str]()

    async def digest(self, password: str, source: str) -> str:
        """Return the digest of a password. Raises TooMany."""
        return await self._in_turn(source, self._hash.hash, password)

    async def matches(self, password: str, digest: str | None, source: str) -> bool:
        """Return whether the password matches. A missing digest takes as long and never matches. Raises TooMany."""
        if not self._dummy:
            self._dummy = await self.digest("a password without a user", source)
        try:
            same = await self._in_turn(source, self._hash.verify, password, digest or self._dummy)
        except PwdlibError:
            return False
        return same and digest is not None

    async def _in_turn(self, source: str, work: Callable[..., _T], *arguments: str) -> _T:
        if self._waiting.total() >= _MOST_WAITING or self._waiting[source] >= _MOST_OF_A_SOURCE:
            raise TooMany("Too many users are logging in now.")
        self._waiting[source] += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting[source] -= 1
            self._waiting += Counter()  # without the sources that wait no longer
