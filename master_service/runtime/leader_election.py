"""Elect the leader of several masters: all of them serve the API, and the leader alone talks to Salt.

No wall clock is used. The holder of the lease increments `renewals`. Another master takes the lease after it has read
the same number for `lease_s` of its own monotonic clock. The holder stops earlier: it trusts the lease for a part of
`lease_s` after it began a renewal. When a paused former leader continues, the epoch refuses its transactions, and
workers refuse its old commands by their generation.

With SQLite a file lock is enough. The kernel releases it at once when its holder ends.
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
"""The part of `lease_s` for which a holder trusts its last renewal. The rest allows for differing clocks."""


class Lease:
    """The lease as one master sees it. `held` is checked before each command to Salt."""

    def __init__(
        self, database: Database, token: FencingToken, lease_s: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(4)}"
        self.others = ""
        """The holder at the last check."""
        self._leases = Leases(database)
        self._token = token
        self._lease_s = lease_s
        self._monotonic = monotonic
        self._good_until = 0.0
        file = database.file
        self._file = file.with_name(f"{file.name}.lock") if file else None
        self._locked: TextIO | None = None

    @property
    def held(self) -> bool:
        """Return whether this master may act now."""
        return self._token.epoch is not None and (self._locked is not None or self._monotonic() < self._good_until)

    async def acquire(self) -> None:
        """Wait until this master has the lease."""
        known, since = LeaseHolder(), self._monotonic()
        while True:
            with suppress(SQLAlchemyError, OSError):  # without the database no master can lead
                now = self._monotonic()
                if (found := await self._leases.look()) != known:
                    known, since = found, now
                self.others = known.holder
                if self._may_take(known, now - since) and await self._take(known):
                    return
            await asyncio.sleep(self._lease_s / 6)

    async def keep(self) -> None:
        """Renew the lease until it is lost."""
        while self.held:
            await asyncio.sleep(self._lease_s / 4)
            if self._locked is None:
                await self._renew()
        log.warning("lease_lost", master=self.name, epoch=self._token.epoch)
        self._token.epoch = None

    async def give_back(self) -> None:
        """Release the lease, so that another master takes over at once."""
        epoch, self._token.epoch = self._token.epoch, None
        if epoch is not None:
            with suppress(SQLAlchemyError, OSError):
                await self._leases.give_back(epoch)
        if self._locked is not None:
            self._locked.close()
            self._locked = None

    def _may_take(self, known: LeaseHolder, quiet_s: float) -> bool:
        if self._file is None:
            return not known.holder or quiet_s > self._lease_s
        if self._locked is None:
            file = self._file.open("w")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                return False
            self._locked = file
        return True

    async def _take(self, known: LeaseHolder) -> bool:
        epoch = await self._leases.take(known, self.name)
        if epoch is None:
            return False
        self._token.epoch = epoch
        # Taking it may have waited for the holder's last transaction, so trust begins with a renewal of our own.
        await self._renew()
        log.info("lease_taken", master=self.name, epoch=epoch, before=known.holder)
        return True

    async def _renew(self) -> None:
        epoch, begun = self._token.epoch, self._monotonic()
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
            self._token.epoch = None
