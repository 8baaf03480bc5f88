"""Repair stored times after the wall clock jumped, so that no retry waits until the clock is there again."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, true, update
from sqlmodel import col, select

from master_service.core.settings import Settings
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import DeliveryRow, DispatchRow, ObservedRow, VMachineRow, WorkerRow
from master_service.store.mapping import dispatch_columns, load_for_change, lock, observed_columns, upsert, vm_select


class ClockRepair:
    """Writer that repairs times in the future."""

    def __init__(self, database: Database, term: FencingToken, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._longest = timedelta(seconds=settings.retry_cap_s)
        self._longest_pause = timedelta(seconds=settings.notice_retry_cap_s)

    @database_method
    async def settle(self, now: datetime, *, jumped: bool) -> None:
        """Set times that are wrongly in the future to now.

        `jumped`: the clock is known to have jumped, back or ahead. The time without progress of each step is unknown
        then and starts again.
        """
        to_come = or_(
            col(ObservedRow.real_at) > now,
            col(ObservedRow.since) > now,
            col(ObservedRow.last_progress_at) > now,
            col(DispatchRow.sent_at) > now,
            col(DispatchRow.next_at) > now + self._longest,
        )
        # Other times that something waits for, each with the latest that can be right.
        others = [
            (WorkerRow, col(WorkerRow.seen_at), now),
            (DeliveryRow, col(DeliveryRow.next_try_at), now + self._longest_pause),
        ]
        async with self._database.read() as session:
            found = await session.exec(vm_select().where(col(VMachineRow.destroyed_at).is_(None), to_come))
            uuids = [row[0].uuid for row in found]
            wrong = [
                (table, column, most)
                for table, column, most in others
                if (await session.exec(select(column).where(column > most).limit(1))).first() is not None
            ]
        if not (uuids or wrong or jumped):
            return
        async with self._database.write() as session:
            await self._term.check(session)
            if jumped:
                await lock(session, true())
            for uuid, vm in (await load_for_change(session, uuids)).items():
                settled = vm.clamp_to(now, self._longest)
                await upsert(session, ObservedRow, uuid, observed_columns(settled.observed))
                await upsert(session, DispatchRow, uuid, dispatch_columns(settled.dispatch))
            for table, column, most in wrong:
                await session.exec(update(table).where(column > most).values({column: now}))
            if jumped:
                await session.exec(
                    update(ObservedRow)
                    .where(col(ObservedRow.last_progress_at).is_not(None))
                    .values(last_progress_at=now)
                )
            notify_on_commit(session, uuids)
