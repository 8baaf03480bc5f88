"""Which of several masters does the work: all of them answer people, one of them talks to Salt.

No wall clock is asked. Whoever has the lease counts its `beat` up; another one takes it after it has seen the same beat
for `lease_s` of its own monotonic clock. The holder itself stops earlier: it trusts the lease for a part of `lease_s`
after it began to renew it. One that was stopped and goes on is refused by the epoch in each of its transactions, and
what it had already handed to Salt is refused by the workers, by generation.

Beside SQLite a lock on a file is enough, and the kernel frees it at once when its holder dies.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final, TextIO

import structlog
from sqlalchemy.exc import SQLAlchemyError

from master_service.db.engine import Database
from master_service.db.fencing import FencingToken, LeaseHolder, Leases

log = structlog.get_logger()
_TRUST: Final = 0.75
"""The part of `lease_s` for which a holder trusts its last sign of life: the rest is for clocks that run apart."""


class Lease:
    """One master's claim. `held` is asked before anything is handed to Salt."""

    def __init__(
        self, database: Database, term: FencingToken, lease_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.others = ""
        """Who had it when this master looked last."""
        self._leases = Leases(database)
        self._term = term
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._good_until = 0.0
        file = database.file
        self._file = file.with_name(f"{file.name}.lock") if file else None
        self._locked: TextIO | None = None

    @property
    def held(self) -> bool:
        """Whether this master may act now."""
        return self._term.epoch is not None and (self._locked is not None or self._monotonic() < self._good_until)

    async def acquire(self) -> None:
        """Wait until this master has the lease."""
        seen, since = LeaseHolder(), self._monotonic()
        while True:
            with suppress(SQLAlchemyError, OSError):  # a database that is away: nobody can lead meanwhile
                now = self._monotonic()
                if (found := await self._leases.look()) != seen:
                    seen, since = found, now
                self.others = seen.holder
                if self._may_take(seen, now - since) and await self._take(seen):
                    return
            await asyncio.sleep(self._lease_s / 6)

    async def keep(self) -> None:
        """Give signs of life until the lease is lost."""
        while self.held:
            await asyncio.sleep(self._lease_s / 4)
            if self._locked is None:
                await self._renew()
        log.warning("lease_lost", master=self.name, epoch=self._term.epoch)
        self._term.epoch = None

    async def give_back(self) -> None:
        """Let another master take over at once."""
        epoch, self._term.epoch = self._term.epoch, None
        if epoch is not None:
            with suppress(SQLAlchemyError, OSError):
                await self._leases.give_back(epoch)
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def _may_take(self, seen: LeaseHolder, quiet_s: float) -> bool:
        if self._file is None:
            return not seen.holder or quiet_s > self._lease_s
        if self._locked is None:
            file = self._file.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._locked = file
        return True

    async def _take(self, seen: LeaseHolder) -> bool:
        epoch = await self._leases.take(seen, self.name)
        if epoch is None:
            return False
        self._term.epoch = epoch
        # Taking it may have waited for the holder's last transaction: trust begins with a sign of life of our own.
        await self._renew()
        log.info("lease_taken", master=self.name, epoch=epoch, before=seen.holder)
        return True

    async def _renew(self) -> None:
        epoch, begun = self._term.epoch, self._monotonic()
        if epoch is None:
            return
        try:
            mine = await self._leases.renew(epoch)
        except (SQLAlchemyError, OSError) as err:
            log.warning("lease_not_renewed", error=type(err).__name__)
            return
        if mine:
            self._good_until = begun + _TRUST * self._lease_s
        else:
            self._term.epoch = None
