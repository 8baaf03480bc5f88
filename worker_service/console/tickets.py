"""Tickets for screens: good once, for thirty seconds, for one user and one VM.

Only a ticket's digest is kept, and only its digest travels through Salt: whoever is going to use a ticket makes it.
A job's arguments and its return can be read by all who may read Salt's events and job cache; these give nothing away.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from worker_service.contract import Code
from worker_service.contract.tickets import LIFE_S, digest, make
from worker_service.core.errors import BadRequest, Refused

__all__ = ["LIFE_S", "Ticket", "Tickets", "digest", "make"]

_MOST: Final = 1000
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """What a ticket lets its holder do."""

    vm: str
    """uuid of the VM."""
    user: str
    admin: bool
    """Whether it also opens a screen that is shut to users while software is being installed."""
    view_only: bool
    expires_at: float
    """On the monotonic clock of `boot`: setting the time of day neither revives nor ends a ticket."""
    boot: str


class Tickets:
    """The tickets of a worker: a file each, shared by the processes that issue them and those that take them.

    Args:
        folder: where they are kept; made when it is missing.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock

    def issue(self, key: str, *, vm: str, user: str, admin: bool, view_only: bool) -> None:
        """Remember the ticket with this digest; raises BadRequest and Refused."""
        if not _DIGEST.fullmatch(key):
            raise BadRequest(
                "ticket_sha256 must be the SHA-256 of a secret of your own making, in hex. "
                "Through Salt nothing else may travel: arguments and returns of jobs can be read by others."
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._sweep() >= _MOST:
            text = f"{_MOST} tickets wait to be used. Try again in {LIFE_S:g} s."
            raise Refused(text, code=Code.TOO_MANY)
        ticket = Ticket(
            vm=vm, user=user, admin=admin, view_only=view_only, expires_at=self._clock() + LIFE_S, boot=_boot()
        )
        try:
            made = os.open(self._folder / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            raise Refused("There is a ticket of that digest already. Make a new secret for each ticket.") from None
        with os.fdopen(made, "wb") as file:
            file.write(msgspec.json.encode(ticket))

    def redeem(self, secret: str, vm: str) -> Ticket:
        """Take a ticket for a VM: whether it fits or not, it is gone. Raises Refused, the same for every reason."""
        path = self._folder / digest(secret)
        with suppress(OSError, msgspec.DecodeError):
            ticket = msgspec.json.decode(path.read_bytes(), type=Ticket)
            path.unlink()  # of several at once, the one that removes it has it
            if ticket.vm == vm and self._good(ticket):
                return ticket
        raise Refused(
            "No valid ticket. A ticket opens one screen once, within 30 s. Ask for a new one.", code=Code.POLICY
        )

    def _good(self, ticket: Ticket) -> bool:
        return ticket.boot == _boot() and self._clock() < ticket.expires_at

    def _sweep(self) -> int:
        """Forget those whose time is over; how many are left."""
        left = 0
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                try:
                    good = self._good(msgspec.json.decode(path.read_bytes(), type=Ticket))
                except msgspec.DecodeError:  # being written just now, or left by a crash
                    good = time.time() - path.stat().st_mtime < LIFE_S
                if good:
                    left += 1
                else:
                    path.unlink()
        return left


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
