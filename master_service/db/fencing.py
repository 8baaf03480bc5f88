"""Which master works: one row, and the check by which a transaction of one that was replaced is refused."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import NotLeading
from master_service.db.engine import Database, uninterrupted
from master_service.db.tables import LeaseRow

_NAME: Final = "daemons"


@dataclass(frozen=True, kw_only=True, slots=True)
class Held:
    """The lease as it stands. `holder` is empty when it was given back; `beat` counts its holder's signs of life."""

    holder: str = ""
    epoch: int = 0
    beat: int = 0


class Term:
    """One master's turn. While `epoch` is set, whatever is written through `confirm` belongs to that turn alone."""

    def __init__(self) -> None:
        self.epoch: int | None = None

    async def confirm(self, session: AsyncSession) -> None:
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

    @uninterrupted
    async def look(self) -> Held:
        """The lease as it stands."""
        async with self._database.read() as session:
            row = await session.get(LeaseRow, _NAME)
        return Held(holder=row.holder, epoch=row.epoch, beat=row.beat) if row else Held()

    @uninterrupted
    async def take(self, seen: Held, holder: str) -> int | None:
        """Take the lease if it still stands as `seen`; the new epoch, or None when somebody was quicker."""
        async with self._database.write() as session:
            row = (await session.exec(select(LeaseRow).where(LeaseRow.name == _NAME).with_for_update())).first()
            if row is None:
                row = LeaseRow(name=_NAME)
            if (row.epoch, row.beat) != (seen.epoch, seen.beat):
                return None
            row.holder, row.epoch, row.beat = holder, row.epoch + 1, row.beat + 1
            session.add(row)
            return row.epoch

    @uninterrupted
    async def renew(self, epoch: int) -> bool:
        """Give a sign of life; False when another master has the lease now."""
        return await self._change(epoch, beat=col(LeaseRow.beat) + 1)

    @uninterrupted
    async def give_back(self, epoch: int) -> None:
        """Let another master have the lease at once."""
        await self._change(epoch, holder="")

    async def _change(self, epoch: int, **columns: object) -> bool:
        mine = update(LeaseRow).where(col(LeaseRow.name) == _NAME, col(LeaseRow.epoch) == epoch)
        async with self._database.write() as session:
            return bool((await session.exec(mine.values(**columns))).rowcount)
