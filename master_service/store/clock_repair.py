"""After the wall clock jumped: what was noted by it before is put right, so that nothing waits for the clock."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import or_, update
from sqlmodel import col, select

from master_service.core.settings import Settings
from master_service.db.engine import Database, tell, uninterrupted
from master_service.db.fencing import Term
from master_service.db.tables import AccountRow, DeliveryRow, PushRow, RealRow, VMachineRow, WorkerRow
from master_service.policy.accounts import LONGEST_LOCK_S
from master_service.store.mapping import joined, load_for_change, push_columns, put, real_columns


class Times:
    """Times in the database that cannot be true."""

    def __init__(self, database: Database, term: Term, settings: Settings) -> None:
        self._database = database
        self._term = term
        self._longest = timedelta(seconds=settings.retry_cap_s)
        self._longest_pause = timedelta(seconds=settings.notice_retry_cap_s)

    @uninterrupted
    async def settle(self, now: datetime, *, jumped: bool) -> None:
        """Write times that are still to come, though they should not be, as now.

        `jumped`: the clock is known to have jumped, back or ahead. Then nobody knows for how long a step has shown no
        progress, and that begins anew.
        """
        to_come = or_(
            col(RealRow.real_at) > now,
            col(RealRow.since) > now,
            col(RealRow.moved_at) > now,
            col(PushRow.sent_at) > now,
            col(PushRow.next_at) > now + self._longest,
        )
        # Whatever else waits for a time; none of them is further away than this.
        others = [
            (WorkerRow, col(WorkerRow.seen_at), now),
            (AccountRow, col(AccountRow.locked_until), now + timedelta(seconds=LONGEST_LOCK_S)),
            (DeliveryRow, col(DeliveryRow.next_try_at), now + self._longest_pause),
        ]
        async with self._database.read() as session:
            found = await session.exec(joined().where(col(VMachineRow.destroyed_at).is_(None), to_come))
            uuids = [row[0].uuid for row in found]
            wrong = [
                (table, column, most)
                for table, column, most in others
                if (await session.exec(select(column).where(column > most).limit(1))).first() is not None
            ]
        if not (uuids or wrong or jumped):
            return
        async with self._database.write() as session:
            await self._term.confirm(session)
            for uuid, vm in (await load_for_change(session, uuids)).items():
                settled = vm.not_after(now, self._longest)
                await put(session, RealRow, uuid, real_columns(settled.real))
                await put(session, PushRow, uuid, push_columns(settled.push))
            for table, column, most in wrong:
                await session.exec(update(table).where(column > most).values({column: now}))
            if jumped:
                await session.exec(update(RealRow).where(col(RealRow.moved_at).is_not(None)).values(moved_at=now))
            tell(session, uuids)
