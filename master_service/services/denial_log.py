"""Refusals in the audit: every one of them, but no more than one line a minute for the same from the same place."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from master_service.core.clock import Clock
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.store.audit import AuditStore

log = structlog.get_logger()
_WINDOW: Final = timedelta(minutes=1)
_MOST: Final = 1000
"""Different ones remembered; beyond that the oldest is forgotten, and may be told of once more."""


class DenialLog:
    """Writes refusals down. Somebody who is refused a thousand times a minute fills neither the disk nor the log."""

    def __init__(self, audit: AuditStore, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._seen: dict[tuple[str, ...], tuple[datetime, int]] = {}

    async def record(self, actor: Actor, what: str, why: str) -> None:
        """Write down that `actor` was refused `what`. Raises nothing: a full disk must not change the answer."""
        now = self._clock()
        key = (actor.name, actor.address, what, why)
        since, suppressed = self._seen.pop(key, (None, 0))
        # Not before it, either: after the clock went back they would be kept back until it is there again.
        if since is not None and since <= now < since + _WINDOW:
            self._seen[key] = (since, suppressed + 1)
            return
        self._seen[key] = (now, 0)
        if len(self._seen) > _MOST:
            self._seen.pop(next(iter(self._seen)))
        told = f"{what}: {why}" + (f"; {suppressed} more like it before" if suppressed else "")
        log.warning("denied", actor=actor.name, address=actor.address, what=what, why=why)
        try:
            await self._audit.add(
                AuditEntry(
                    at=now, actor=actor, verb="denied", kind="route", target=what, outcome=Outcome.DENIED, detail=told
                )
            )
        except SQLAlchemyError as err:
            log.warning("denial_not_kept", error=type(err).__name__)
