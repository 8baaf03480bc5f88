"""Record refused requests in the audit, within bounds: what is refused costs its sender nothing.

The same request from the same address has one entry a minute. Each source, each user, and all callers without a user
together have so many entries; the entry that follows says how many had no room.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

import structlog
from sqlalchemy.exc import SQLAlchemyError

from http_bounds.rate_limit import Limiter
from master_service.core.clock import Clock
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import ANONYMOUS, Actor, AuditEntry
from master_service.services.login_limits import source_of
from master_service.store.audit import AuditStore

log = structlog.get_logger()
_WINDOW: Final = timedelta(minutes=1)
_MOST: Final = 1000
"""The number of different refusals in memory. Beyond it the oldest is dropped and may be recorded again."""

_PER_S: Final = 0.2
"""Entries a second of one source, of one user, and of all without a user."""

_AT_ONCE_OF_A_SOURCE: Final = 30
_AT_ONCE: Final = 100


class DenialLog:
    """Records refusals. A caller that is refused a thousand times a minute fills neither the disk nor the log."""

    def __init__(self, audit: AuditStore, clock: Clock) -> None:
        self._audit = audit
        self._clock = clock
        self._recent: dict[tuple[str, ...], tuple[datetime, int]] = {}
        self._sources = Limiter[str](_PER_S, _AT_ONCE_OF_A_SOURCE)
        self._users = Limiter[str](_PER_S, _AT_ONCE)
        self._without_room = 0

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
        entry = AuditEntry(
            at=now, actor=actor, verb="denied", kind="route", target=what, outcome=Outcome.DENIED, detail=detail
        )
        await self._add(entry)

    async def record_login(self, actor: Actor, user: str, why: str) -> None:
        """Record that a password was refused. `user`: whose; empty if there is no such user.

        Whether there is room depends on nothing that is secret, so the time tells nothing about a user.
        """
        entry = AuditEntry(
            at=self._clock(), actor=actor, verb="login", kind="user", target=user, outcome=Outcome.DENIED, detail=why
        )
        await self._add(entry)

    async def _add(self, entry: AuditEntry) -> None:
        actor, seconds = entry.actor, entry.at.timestamp()
        is_user = actor.name != ANONYMOUS
        if not is_user and self._sources.wait_s(source_of(actor.address), seconds):
            self._without_room += 1
            return
        if self._users.wait_s(actor.name, seconds):
            self._without_room += 1
            return
        what = entry.target if entry.kind == "route" else f"{entry.verb} {entry.target}"
        left_out, self._without_room = self._without_room, 0
        if left_out:
            entry = replace(entry, detail=f"{entry.detail}; {left_out} other refusals before had no room here")
        log.warning("denied", actor=actor.name, address=actor.address, what=what, why=entry.detail)
        try:
            await self._audit.add(entry)
        except SQLAlchemyError as err:
            log.warning("denial_not_recorded", error=type(err).__name__)
