"""Deliver notices to users. All state is in the database, so the daemon may stop anywhere and continue later.

Delivery is at least once: a try is counted before it is made, and a master that stops in between repeats it later.
Webhooks and mails carry the id of the delivery, so that a receiver recognizes a repetition.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog

from master_service.core.errors import NotDelivered, NotLeading
from master_service.policy.notice_formats import Channel, Delivery, pause
from master_service.runtime.context import Context
from master_service.services import mail, webhook

log = structlog.get_logger()
_LOOK_S: Final = 1.0
"""Pause between two queries of the outbox, each one look-up in an index."""
_AT_ONCE: Final = 8
_OTHER: Final = "An error in this master; its log has the details."


class NoticeDispatcher:
    """The daemon that delivers notices. Only the leader runs it."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                while await self.deliver():
                    pass
            except NotLeading:
                log.info("notifier_not_leading")
            except Exception:
                log.exception("notifier_failed")
            await asyncio.sleep(_LOOK_S)

    async def deliver(self) -> int:
        """Try the first few deliveries that are due, and return their number."""
        now = self._context.clock()
        # If this master stops now, the leader repeats these deliveries after this time.
        again_at = now + pause(1, self._context.settings)
        taken = await self._context.store.notices.take(now, again_at, _AT_ONCE)
        await asyncio.gather(*(self._try(delivery) for delivery in taken))
        return len(taken)

    async def _try(self, delivery: Delivery) -> None:
        settings, tries = self._context.settings, delivery.attempts + 1
        problem, again, wait_s = "", False, 0.0
        try:
            if delivery.channel is Channel.WEBHOOK:
                await webhook.post(delivery, settings, self._context.clock())
            else:
                await mail.send(delivery, settings, self._context.clock())
        except NotDelivered as err:
            problem, again, wait_s = str(err), err.retry, err.wait_s
        except Exception:
            log.exception("delivery_failed", delivery=delivery.id)
            problem, again = _OTHER, True
        now = self._context.clock()
        again = again and tries < settings.notice_tries
        await self._context.store.notices.settle(
            delivery.id,
            delivered_at=None if problem else now,
            next_try_at=now + max(pause(tries, settings), timedelta(seconds=wait_s)) if again else None,
            problem=problem,
        )
        log.info(
            "notice_not_delivered" if problem else "notice_delivered",
            notice=delivery.notice.id, to=delivery.user, channel=delivery.channel.value, tries=tries, problem=problem,
            again=again,
        )  # fmt: skip
