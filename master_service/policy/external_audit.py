"""Audit entries for acts that did not go through this master, as workers report them. Pure.

A worker signs its reports, but it may report anything about itself: fields are truncated and sanitized.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.saltapi.untrusted import sanitize_text
from worker_service.contract import READ_ONLY_VERBS, AuditEvent

_VERB: Final = re.compile(r"[a-z_]{1,32}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_ACTOR_LIMIT: Final = 30


def entry_from_worker_event(minion: str, event: AuditEvent, at: datetime) -> AuditEntry | None:
    """Return the entry about an act through a worker's own interface, or None if it changes nothing.

    The actor is NAME@WORKER: an account of that worker. No account of the master has an @ in its name.
    """
    if not _VERB.fullmatch(event.verb) or event.verb in READ_ONLY_VERBS:
        return None
    reason = "" if event.success else f": {_one_line(event.code, 32)}"
    return AuditEntry(
        at=at,
        actor=Actor(
            name=f"{_one_line(event.actor, _ACTOR_LIMIT)}@{minion}"[:63],
            interface=event.interface,
            address=_one_line(event.address, 45),
        ),
        verb=event.verb,
        kind="vm",
        target=_one_line(event.name, 255),
        uuid=event.uuid if _UUID.fullmatch(event.uuid) else "",
        outcome=Outcome.DONE if event.success else Outcome.REFUSED,
        detail=f"on {_one_line(minion, 255)} at {_one_line(event.at, 40)}{reason}",
    )


def _one_line(value: object, most: int) -> str:
    """Return an untrusted value as one short line."""
    return "".join(each if each.isprintable() else " " for each in sanitize_text(value if value is not None else ""))[
        :most
    ]
