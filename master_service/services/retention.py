"""Delete rows after their retention period. They are about the past, and no decision depends on them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from master_service.runtime.context import Context

log = structlog.get_logger()
_EVERY_S: Final = 600.0
_ENDED_TOKENS: Final = timedelta(days=7)
"""Expired and revoked tokens are listed this long."""


class Retention:
    """The daemon that deletes old rows."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            await asyncio.sleep(_EVERY_S)
            try:
                await self.clean()
            except Exception:
                log.exception("retention_failed")

    async def clean(self) -> int:
        """Run one pass, and return the number of deleted history entries."""
        settings = self._context.settings
        older_than = self._context.clock() - timedelta(days=settings.history_days)
        await self._context.store.audit.prune(self._context.clock() - timedelta(days=settings.audit_days))
        await self._context.store.notices.prune(self._context.clock() - timedelta(days=settings.history_days))
        await self._context.store.tokens.sweep(self._context.clock(), _ENDED_TOKENS)
        return await self._context.store.history.prune(older_than, settings.history_per_vm)
