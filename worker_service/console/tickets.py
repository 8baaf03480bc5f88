"""Tickets for consoles and saved disks. A ticket is valid once, for thirty seconds, for one user and one VM.

The user of a ticket makes it, and only its digest is stored and travels through Salt. Readers of Salt's events and job
cache see the arguments and returns of jobs, and thus cannot use a ticket.
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

INVALID: Final = "No valid ticket. A ticket opens one console once, within 30 s. Ask for a new one."
"""The answer is the same for every reason."""

_MAX_TICKETS: Final = 1000
_DIGEST: Final = re.compile(r"[0-9a-f]{64}")


class Ticket(msgspec.Struct, frozen=True, kw_only=True):
    """The rights that a ticket gives."""

    vm: str
    """uuid of the VM."""
    user: str
    admin: bool
    """Whether it also opens a console that is closed to users while software is being installed."""
    view_only: bool
    expires_at: float
    """On the monotonic clock of `boot`, so that a change of the wall clock has no effect."""
    boot: str
    disk: str = ""
    """The saved disk that it opens, and no console. Empty: it opens the console."""
    token_sha256: str = ""
    """The token of the worker's API that it came with, and without which it ends. Empty: it came through Salt."""


class Tickets:
    """The tickets of a worker, one file each. Several processes issue and redeem them.

    Args:
        folder: the folder of the files; made if it is missing.
        clock: monotonic seconds.
    """

    def __init__(self, folder: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._folder = folder
        self._clock = clock

    def issue(  # noqa: PLR0913 - the rights that it gives
        self, key: str, *, vm: str, user: str, admin: bool, view_only: bool, token_sha256: str = "", disk: str = ""
    ) -> None:
        """Store the ticket with this digest. Raises BadRequest, Refused."""
        if not _DIGEST.fullmatch(key):
            raise BadRequest(
                "ticket_sha256 must be the SHA-256 of a secret of your own, in hex. "
                "Never send the secret through Salt: others can read the arguments and returns of jobs."
            )
        self._folder.mkdir(mode=0o700, exist_ok=True)
        if self._sweep() >= _MAX_TICKETS:
            text = f"{_MAX_TICKETS} tickets have not been used yet. Try again in {LIFE_S:g} s."
            raise Refused(text, code=Code.TOO_MANY)
        ticket = Ticket(
            vm=vm,
            user=user,
            admin=admin,
            view_only=view_only,
            expires_at=self._clock() + LIFE_S,
            boot=_boot(),
            token_sha256=token_sha256,
            disk=disk,
        )
        try:
            made = os.open(self._folder / key, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600)
        except FileExistsError:
            raise Refused("There is a ticket with this digest already. Make a new secret for each ticket.") from None
        with os.fdopen(made, "wb") as file:
            file.write(msgspec.json.encode(ticket))

    def redeem(self, secret: str, vm: str, disk: str = "") -> Ticket:
        """Use up a ticket, whether it fits the VM and the disk or not. Raises Refused, the same for every reason."""
        path = self._folder / digest(secret)
        with suppress(OSError, msgspec.DecodeError):
            ticket = msgspec.json.decode(path.read_bytes(), type=Ticket)
            path.unlink()  # of several callers, the one that removes the file has the ticket
            if (ticket.vm, ticket.disk) == (vm, disk) and self._is_valid(ticket):
                return ticket
        raise Refused(INVALID, code=Code.POLICY)

    def _is_valid(self, ticket: Ticket) -> bool:
        return ticket.boot == _boot() and self._clock() < ticket.expires_at

    def _sweep(self) -> int:
        """Remove expired tickets; return how many are left."""
        left = 0
        for path in self._folder.iterdir():
            with suppress(FileNotFoundError):
                try:
                    valid = self._is_valid(msgspec.json.decode(path.read_bytes(), type=Ticket))
                except msgspec.DecodeError:  # half written, perhaps before a crash
                    valid = time.time() - path.stat().st_mtime < LIFE_S
                if valid:
                    left += 1
                else:
                    path.unlink()
        return left


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
