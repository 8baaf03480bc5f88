"""Which master works: one row, and the check by which a transaction of one that was replaced is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import NotLeading
from master_service.db.engine import Database, database_method
from master_service.db.tables import LeaseRow

_NAME: Final = "daemons"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeaseHolder:
    """The lease as it stands. `holder` is empty when it was given back; `beat` counts its holder's signs of life."""

    holder: str = ""
    epoch: int = 0
    renewals: int = 0


class FencingToken:
    """One master's turn. While `epoch` is set, whatever is written through `confirm` belongs to that turn alone."""

    def __init__(self) -> None:
        self.epoch: int | None = None

    async def check(self, session: AsyncSession) -> None:
        """Hold the lease until this transaction ends. Raises NotLeading when another master has it now."""
        if self.epoch is None:
            return
        # KEY SHARE: only taking the lease away has to wait for this transaction, a sign of life has not.
        query = select(LeaseRow.epoch).where(LeaseRow.name == _NAME).with_for_update(read=True, key_share=True)
        if (await session.exec(query)).first() != self.epoch:
            raise NotLeading("Another master has taken over from this one.")


class Leases:
    """The one lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def look(self) -> LeaseHolder:
        """The lease as it stands."""
        async with self._database.read() as session:
            row = await session.get(LeaseRow, _NAME)
        return LeaseHolder(holder=row.holder, epoch=row.epoch, renewals=row.renewals) if row else LeaseHolder()

    @database_method
    async def take(self, seen: LeaseHolder, holder: str) -> int | None:
        """Take the lease if it still stands as `seen`; the new epoch, or None when somebody was quicker."""
        async with self._database.write() as session:
            row = (await session.exec(select(LeaseRow).where(LeaseRow.name == _NAME).with_for_update())).first()
            if row is None:
                row = LeaseRow(name=_NAME)
            if (row.epoch, row.renewals) != (seen.epoch, seen.renewals):
                return None
            row.holder, row.epoch, row.renewals = holder, row.epoch + 1, row.renewals + 1
            session.add(row)
            return row.epoch

    @database_method
    async def renew(self, epoch: int) -> bool:
        """Give a sign of life; False when another master has the lease now."""
        return await self._change(epoch, renewals=col(LeaseRow.renewals) + 1)

    @database_method
    async def give_back(self, epoch: int) -> None:
        """Let another master have the lease at once."""
        await self._change(epoch, holder="")

    async def _change(self, epoch: int, **columns: object) -> bool:
        mine = update(LeaseRow).where(col(LeaseRow.name) == _NAME, col(LeaseRow.epoch) == epoch)
        async with self._database.write() as session:
            return bool((await session.exec(mine.values(**columns))).rowcount)
