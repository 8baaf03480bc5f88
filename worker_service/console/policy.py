"""When a VM's screen may be seen: one function of values, asked where a ticket is issued and again while it is used."""

from __future__ import annotations

from typing import Final

from worker_service.contract import Code, Status
from worker_service.core.errors import Refused

_ON: Final = frozenset({Status.RUNNING, Status.SUSPENDED})


def refusal(name: str, status: Status, message: str, *, installing: bool, admin: bool) -> Refused | None:
    """Why this screen is shut now; None where it is open.

    `message` is the VM's own: how far it is. `installing`: its guest has still to report that it is ready. A VM that is
    suspended meanwhile does not say so in its status.
    """
    on = status in _ON or status is Status.INSTALLING
    if on and (admin or not installing):
        return None
    if on:
        return Refused(
            f"The screen of {name!r} is shut while its software is being installed: {message} "
            "It opens when that is done.",
            code=Code.POLICY,
        )
    return Refused(f"{name!r} is {status} and has no screen now. {message} Ask again when it runs.")
