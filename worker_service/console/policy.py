"""Decide whether a VM's console is open. It is checked when a ticket is issued, and again while it is used."""

from __future__ import annotations

from typing import Final

from worker_service.contract import Code, Status
from worker_service.core.errors import Refused

_ON: Final = frozenset({Status.RUNNING, Status.SUSPENDED})


def refusal(name: str, status: Status, message: str, *, installing: bool, admin: bool) -> Refused | None:
    """Return the error for a console that is closed now, or None.

    `message` is that of the VM, with its progress. `installing`: its guest has not reported that it is ready. The
    status does not say so of a suspended VM.
    """
    on = status in _ON or status is Status.INSTALLING
    if on and (admin or not installing):
        return None
    if on:
        return Refused(
            f"The console of {name!r} is closed while its software is being installed: {message} "
            "Try again when that is done.",
            code=Code.POLICY,
        )
    return Refused(f"{name!r} is {status} and has no console now. {message} Try again when it runs.")
