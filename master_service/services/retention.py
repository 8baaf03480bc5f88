"""Forgets what has been kept long enough. Everything it removes is told of the past; nothing is decided by it."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from master_service.runtime.context import Context

log = structlog.get_logger()
_EVERY_S: Final = 600.0
_ENDED_TOKENS: Final = timedelta(days=7)
"""Tokens that have expired or were revoked are listed for so long."""


class Retention:
    """The daemon."""

    def __init__(self, parts: Context) -> None:
        self._context = parts

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.clean()
            except Exception:
                log.exception("housekeeping_failed")

    async def clean(self) -> int:
        """One pass; how many entries of the history were forgotten."""
        settings = self._context.settings
        older_than = self._context.clock() - timedelta(days=settings.history_days)
        await self._context.store.audit.prune(self._context.clock() - timedelta(days=settings.audit_days))
        await self._context.store.notices.prune(self._context.clock() - timedelta(days=settings.history_days))
        await self._context.store.tokens.sweep(self._context.clock(), _ENDED_TOKENS)
        return await self._context.store.history.prune(older_than, settings.history_per_vm)
