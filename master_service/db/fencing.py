"""The leader lease: one row, and the check that refuses the transactions of a master that was replaced."""

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
    """The lease in its current state. `holder` is empty when it was given back; `renewals` counts the renewals."""

    holder: str = ""
    epoch: int = 0
    renewals: int = 0


class FencingToken:
    """The term of one master. While `epoch` is set, `check` refuses transactions outside that term."""

    def __init__(self) -> None:
        self.epoch: int | None = None

    async def check(self, session: AsyncSession) -> None:
        """Hold the lease until this transaction ends. Raises NotLeading when another master has it now."""
        if self.epoch is None:
            return
        # KEY SHARE: taking the lease has to wait for this transaction, a renewal does not.
        query = select(LeaseRow.epoch).where(LeaseRow.name == _NAME).with_for_update(read=True, key_share=True)
        if (await session.exec(query)).first() != self.epoch:
            raise NotLeading("Another master has taken over from this one.")


class Leases:
    """Writer of the one lease."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def look(self) -> LeaseHolder:
        """Return the lease in its current state."""
        async with self._database.read() as session:
            row = await session.get(LeaseRow, _NAME)
        return LeaseHolder(holder=row.holder, epoch=row.epoch, renewals=row.renewals) if row else LeaseHolder()

    @database_method
    async def take(self, known: LeaseHolder, holder: str) -> int | None:
        """Take the lease if it is still as in `known`; return the new epoch, or None if another master was quicker."""
        async with self._database.write() as session:
            row = (await session.exec(select(LeaseRow).where(LeaseRow.name == _NAME).with_for_update())).first()
            if row is None:
                row = LeaseRow(name=_NAME)
            if (row.epoch, row.renewals) != (known.epoch, known.renewals):
                return None
            row.holder, row.epoch, row.renewals = holder, row.epoch + 1, row.renewals + 1
            session.add(row)
            return row.epoch

    @database_method
    async def renew(self, epoch: int) -> bool:
        """Renew the lease; return False if another master has it now."""
        return await self._change(epoch, renewals=col(LeaseRow.renewals) + 1)

    @database_method
    async def give_back(self, epoch: int) -> None:
        """Give the lease back, so that another master can take it at once."""
        await self._change(epoch, holder="")

    async def _change(self, epoch: int, **columns: object) -> bool:
        mine = update(LeaseRow).where(col(LeaseRow.name) == _NAME, col(LeaseRow.epoch) == epoch)
        async with self._database.write() as session:
            return bool((await session.exec(mine.values(**columns))).rowcount)
