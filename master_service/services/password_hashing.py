"""Passwords: argon2id, in a thread, a few at a time. Who does not exist costs the same time as who does."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, TypeVar

from pwdlib import PasswordHash
from pwdlib.exceptions import PwdlibError
from pwdlib.hashers.argon2 import Argon2Hasher

from master_service.core.errors import TooMany

_AT_ONCE: Final = 2
"""Each takes 64 MiB and a few hundredths of a second of several processors."""

_MOST_WAITING: Final = 20
_T = TypeVar("_T")


class Passwords:
    """Makes and compares digests of passwords."""

    def __init__(self) -> None:
        self._hash = PasswordHash((Argon2Hasher(),))
        self._nobodys = ""
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._waiting = 0

    async def digest(self, password: str) -> str:
        """What is kept of a password. Raises TooMany."""
        return await self._alone(self._hash.hash, password)

    async def matches(self, password: str, kept: str | None) -> bool:
        """Whether this is the password. `kept` None: nobody's, takes as long, never matches. Raises TooMany."""
        if not self._nobodys:
            self._nobodys = await self.digest("nobody's password")
        try:
            same = await self._alone(self._hash.verify, password, kept or self._nobodys)
        except PwdlibError:
            return False
        return same and kept is not None

    async def _alone(self, work: Callable[..., _T], *arguments: str) -> _T:
        if self._waiting >= _MOST_WAITING:
            raise TooMany("Too many people are logging in at this moment.")
        self._waiting += 1
        try:
            async with self._turn:
                return await asyncio.to_thread(work, *arguments)
        finally:
            self._waiting -= 1
