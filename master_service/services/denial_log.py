"""Record refused requests in the audit, at most one entry a minute for the same request from the same address."""

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
"""The number of different refusals in memory. Beyond it the oldest is dropped and may be recorded again."""


class DenialLog:
    """Records refusals. A caller that is refused a thousand times a minute fills neither the disk nor the log."""

    def __init__(self, audit: AuditStore, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._recent: dict[tuple[str, ...], tuple[datetime, int]] = {}

    async def record(self, actor: Actor, what: str, why: str) -> None:
        """Record that `actor` was refused `what`. Never raises: a full disk must not change the answer."""
        now = self._clock()
        key = (actor.name, actor.address, what, why)
        since, suppressed = self._recent.pop(key, (None, 0))
        # Times before `since` do not count: after the clock went back, it would record nothing for that long.
        if since is not None and since <= now < since + _WINDOW:
            self._recent[key] = (since, suppressed + 1)
            return
        self._recent[key] = (now, 0)
        if len(self._recent) > _MOST:
            self._recent.pop(next(iter(self._recent)))
        detail = f"{what}: {why}" + (f"; {suppressed} more like it before" if suppressed else "")
        log.warning("denied", actor=actor.name, address=actor.address, what=what, why=why)
        try:
            await self._audit.add(
                AuditEntry(
                    at=now, actor=actor, verb="denied", kind="route", target=what, outcome=Outcome.DENIED, detail=detail
                )
            )
        except SQLAlchemyError as err:
            log.warning("denial_not_recorded", error=type(err).__name__)
