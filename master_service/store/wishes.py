"""What users want: the only writer of wishes. Each change and its audit row are one transaction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.database import Database, uninterrupted
from master_service.errors import NameTaken, NotFound
from master_service.facts import VM, Assumed, Wanted
from master_service.models import AuditRow, VMachineRow
from master_service.store.rows import assumed_columns, load_for_change


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """Who asked, through which door, for what, and when: the audit row of a change."""

    who: str
    door: str
    verb: str
    at: datetime


class Wishes:
    """What users want."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @uninterrupted
    async def create(self, assumed: Assumed, asked: Asked) -> None:
        """Keep a new VM. Raises NameTaken when one that is not destroyed has the name."""
        try:
            async with self._database.write() as session:
                session.add(VMachineRow(**assumed_columns(assumed)))
                _audit(session, assumed, asked)
        except IntegrityError as err:
            raise NameTaken(f"There is a VM named {assumed.name} already.") from err

    @uninterrupted
    async def change(self, uuid: str, edit: Callable[[VM], Assumed], asked: Asked) -> bool:
        """Replace what is wanted by `edit(vm)`, decided and written under one lock; return whether anything changed.

        Raises NotFound, and whatever `edit` raises; then nothing is written.
        """
        async with self._database.write() as session:
            vm = (await load_for_change(session, [uuid])).get(uuid)
            if vm is None:
                raise NotFound(f"There is no VM {uuid}.")
            edited = edit(vm)
            _audit(session, edited, asked)
            if edited == vm.assumed:
                return False
            await _write(session, edited)
            return True

    @uninterrupted
    async def follow(self, seen: Assumed, now: datetime) -> bool:
        """Let what is wanted become halted, unless its user changed something since `seen`. Sends nothing."""
        return await self._settle(seen, now, wanted=Wanted.HALTED.value, changed_at=now)

    @uninterrupted
    async def destroyed(self, seen: Assumed, now: datetime) -> bool:
        """Note that a VM is destroyed: its name is free again."""
        return await self._settle(seen, now, destroyed_at=now)

    async def _settle(self, seen: Assumed, now: datetime, **columns: object) -> bool:
        async with self._database.write() as session:
            result = await session.exec(
                update(VMachineRow)
                .where(
                    col(VMachineRow.uuid) == seen.uuid,
                    col(VMachineRow.version) == seen.version,
                    col(VMachineRow.destroyed_at).is_(None),
                )
                .values(version=seen.version + 1, **columns)
            )
            if result.rowcount:
                verb = "destroyed" if "destroyed_at" in columns else "follow"
                _audit(session, seen, Asked(who="saltern", door="pusher", verb=verb, at=now))
            return bool(result.rowcount)


async def _write(session: AsyncSession, assumed: Assumed) -> None:
    columns = assumed_columns(replace(assumed, version=assumed.version + 1))
    await session.exec(update(VMachineRow).where(col(VMachineRow.uuid) == assumed.uuid).values(**columns))


def _audit(session: AsyncSession, assumed: Assumed, asked: Asked) -> None:
    session.add(
        AuditRow(
            at=asked.at,
            who=asked.who,
            door=asked.door,
            verb=asked.verb,
            uuid=assumed.uuid,
            name=assumed.name,
            generation=assumed.generation,
        )
    )
