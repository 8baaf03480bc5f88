"""Which events of Salt's bus the gate passes: those of workers, and the returns of its own jobs. Pure.

Other events show the arguments of all jobs on that Salt master.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from master_service.gate.requests import FUNCTIONS, WORKER
from worker_service.contract import EVENT_ROOT

_OF_WORKER: Final = re.compile(rf"{EVENT_ROOT}/{WORKER}/[0-9a-z_/-]{{1,60}}")
_RETURN: Final = re.compile(rf"salt/job/[0-9]{{1,32}}(?:_[0-9]{{1,10}})?/ret/{WORKER}")
"""With `unique_jid`, Salt adds `_` and the number of a process to the id of a job."""


class Passed(msgspec.Struct, frozen=True, kw_only=True):
    """An event for the masters, with the fields that they need."""

    tag: str
    data: dict[str, Any]


def passed(line: bytes, is_ours: Callable[[str], bool]) -> Passed | None:
    """Return an event from a line of the engine, or None. `is_ours`: whether the gate sent a job with this nonce."""
    try:
        event = msgspec.json.decode(line, type=Passed)
    except (msgspec.MsgspecError, RecursionError):
        return None
    match event.data:
        case {"id": str() as sender, "data": dict() as data} if _OF_WORKER.fullmatch(event.tag):
            return Passed(tag=event.tag, data={"id": sender, "data": data})
        case {
            "id": str() as sender,
            "fun": str() as fun,
            "return": answer,
            "metadata": {"nonce": str() as nonce},
        } if _RETURN.fullmatch(event.tag) and fun in FUNCTIONS and is_ours(nonce):
            returned = {"id": sender, "fun": fun, "return": answer, "metadata": {"nonce": nonce}}
            return Passed(tag=event.tag, data=returned)
        case _:
            return None
