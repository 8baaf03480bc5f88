"""Notices and their deliveries: an outbox, written in the transaction of the report that causes them."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, delete, func, or_, update
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import Conflict, NotFound, TooMany
from master_service.db.engine import Database, database_method, notify_on_commit
from master_service.db.fencing import FencingToken
from master_service.db.tables import AccountRow, DeliveryRow, NoticeRow
from master_service.policy.accounts import digest
from master_service.policy.audit import Actor, AuditEntry
from master_service.policy.incidents import Incident, Kind, Notice
from master_service.policy.notice_formats import Channel, Delivery, DeliveryProgress, state
from master_service.policy.permissions import Role
from master_service.store.audit import add_entry
from master_service.store.mapping import lock_account

_CODE_WINDOW: Final = timedelta(days=1)
_MOST_CODES: Final = 5
"""Codes in one window for one account, and to one address for all accounts."""
_CODE_GAP: Final = timedelta(seconds=30)
"""The shortest time between two codes of one account."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Contact:
    """Where an account gets its notices. The secret of the webhook was shown once, when it was made."""

    email: str
    email_pending: str
    webhook_url: str


async def raise_all(session: AsyncSession, incidents: Collection[Incident], now: datetime) -> None:
    """Store the incidents that are new: each poll reports the same incident until it is over."""
    if not incidents:
        return
    by_key = {incident.key: incident for incident in incidents}
    known = set(await session.exec(select(NoticeRow.key).where(col(NoticeRow.key).in_(by_key))))
    rows = [_add(session, incident, now) for key, incident in by_key.items() if key not in known]
    if not rows:
        return
    await session.flush()
    owners = {row.owner_id for row in rows if row.owner_id}
    concerned = (col(AccountRow.id).in_(owners)) | (col(AccountRow.role) == Role.ADMIN.value)
    query = select(AccountRow).where(concerned, col(AccountRow.disabled).is_(False))
    accounts = (await session.exec(query)).all()
    for row in rows:
        for account in accounts:
            if _concerns(row, account):
                _address(session, row, account, now)


async def mail_code(session: AsyncSession, account: AccountRow, address: str, now: datetime) -> str:
    """Queue a mail with the code that verifies an address, and return the code. Raises TooMany.

    The rate is limited for an account, and for all accounts to one address: nobody sends mails to others this way.
    """
    codes = (NoticeRow.kind == Kind.VERIFY_EMAIL.value, col(NoticeRow.at) > now - _CODE_WINDOW)
    own = (await session.exec(select(NoticeRow.at).where(*codes, NoticeRow.owner_id == account.id))).all()
    if any(at > now - _CODE_GAP for at in own):
        raise TooMany(f"A code was mailed for {account.name} less than {_CODE_GAP.total_seconds():g} s ago.")
    # All who see VMs see notices, so the address is only in the key, which none of them sees.
    hashed = digest(address.lower())[:32]
    to_address = select(func.count()).where(*codes, col(NoticeRow.key).contains(f":{hashed}:"))
    if len(own) >= _MOST_CODES or (await session.exec(to_address)).one() >= _MOST_CODES:
        raise TooMany(f"{_MOST_CODES} codes were mailed within a day for {account.name}, or to this address.")
    incident = Incident(
        key=f"{Kind.VERIFY_EMAIL.value}:{account.id}:{hashed}:{now.isoformat()}",
        kind=Kind.VERIFY_EMAIL,
        owner=account.name,
        owner_id=account.id,
        uuid="",
        name=account.name,
        text="A code is mailed to the new address. Notices go there after `saltern users contact --code CODE`.",
    )
    row = _add(session, incident, now)
    await session.flush()
    delivery = DeliveryRow(notice_id=row.id or 0, user=account.name, channel=Channel.MAIL.value, next_try_at=now)
    session.add(delivery)
    return secrets.token_hex(12)


@dataclass(frozen=True, kw_only=True, slots=True)
class NoticeQuery:
    """Which notices to list. `only`: those for the account with this id alone. `vm`: the name or the uuid of a VM."""

    only: str | None = None
    vm: str | None = None
    kinds: Collection[Kind] = ()
    acknowledged: bool | None = None
    before: int | None = None

    def statement(self) -> Any:
        """Return the query for these notices, newest first."""
        query = select(NoticeRow).order_by(col(NoticeRow.id).desc())
        if self.only is not None:
            query = query.where(NoticeRow.owner_id == self.only)
        if self.vm is not None:
            of_vm = and_(col(NoticeRow.uuid) != "", col(NoticeRow.name) == self.vm)
            query = query.where(or_(of_vm, col(NoticeRow.uuid) == self.vm.lower()))
        if self.kinds:
            query = query.where(col(NoticeRow.kind).in_([kind.value for kind in self.kinds]))
        if self.acknowledged is not None:
            never = col(NoticeRow.acknowledged_at).is_(None)
            query = query.where(~never if self.acknowledged else never)
        if self.before is not None:
            query = query.where(col(NoticeRow.id) < self.before)
        return query


class NoticeStore:
    """Writer and reader of notices and their deliveries."""

    def __init__(self, database: Database, term: FencingToken) -> None:
        self._database = database
        self._term = term

    @database_method
    async def keep(self, incidents: Collection[Incident], now: datetime) -> None:
        """Store incidents that no report causes; each once, however often it is found."""
        async with self._database.write() as session:
            await self._term.check(session)
            await raise_all(session, incidents, now)

    @database_method
    async def newest(self, query: NoticeQuery, limit: int) -> list[Notice]:
        """Return notices, newest first."""
        async with self._database.read() as session:
            return [_notice(row) for row in await session.exec(query.statement().limit(limit))]

    @database_method
    async def acknowledge(
        self, ids: Collection[int] | None, only: str | None, actor: Actor, now: datetime
    ) -> list[Notice]:
        """Acknowledge these notices, or with None all; return those that were not acknowledged before.

        `only`: those for the account with this id alone. Raises NotFound, and then acknowledges none.
        """
        async with self._database.write() as session:
            query = NoticeQuery(only=only, acknowledged=None if ids is not None else False).statement()
            if ids is not None:
                query = query.where(col(NoticeRow.id).in_(ids))
            found = (await session.exec(query.with_for_update())).all()
            if missing := sorted(set(ids or ()) - {row.id for row in found}):
                raise NotFound(f"There is no notice {missing[0]}.", "`saltern notices` shows those that you may see.")
            fresh = [row for row in found if row.acknowledged_at is None]
            for row in fresh:
                row.acknowledged_at, row.acknowledged_by = now, actor.name
                session.add(row)
            if fresh:
                entry = AuditEntry(
                    at=now, actor=actor, verb="acknowledge", kind="notice", target=str(fresh[-1].id),
                    detail=f"{len(fresh)} notices, from {fresh[-1].id} to {fresh[0].id}" if fresh[1:] else "",
                )  # fmt: skip
                add_entry(session, entry)
            return [_notice(row) for row in fresh]

    @database_method
    async def last(self) -> int:
        """Return the id of the newest notice; 0: there are no notices."""
        async with self._database.read() as session:
            return (await session.exec(select(func.max(NoticeRow.id)))).one() or 0

    @database_method
    async def since(self, last: int, limit: int) -> list[Notice]:
        """Return the notices after the one with the id `last`, oldest first."""
        query = select(NoticeRow).where(col(NoticeRow.id) > last).order_by(col(NoticeRow.id)).limit(limit)
        async with self._database.read() as session:
            return [_notice(row) for row in await session.exec(query)]

    @database_method
    async def progress(self, notice_ids: Collection[int], only: str | None) -> list[DeliveryProgress]:
        """Return the progress of the deliveries of these notices. `only`: to the account with this name alone."""
        query = select(DeliveryRow).where(col(DeliveryRow.notice_id).in_(notice_ids)).order_by(col(DeliveryRow.id))
        if only is not None:
            query = query.where(DeliveryRow.user == only)
        async with self._database.read() as session:
            return [_progress(row) for row in await session.exec(query)]

    @database_method
    async def contact(self, name: str) -> Contact:
        """Return where an account gets its notices. Raises NotFound."""
        async with self._database.read() as session:
            account = await session.get(AccountRow, name)
        if account is None:
            raise NotFound(f"There is no user {name!r}.")
        return Contact(email=account.email, email_pending=account.email_pending, webhook_url=account.webhook_url)

    @database_method
    async def try_out(self, name: str, actor: Actor, now: datetime, gap: timedelta) -> Notice:
        """Send an account a test notice. Raises Conflict, NotFound, TooMany."""
        async with self._database.write() as session:
            account = await lock_account(session, name, actor)
            if not (account.email or account.webhook_url):
                raise Conflict(f"{name} has neither a verified e-mail address nor a webhook.", "Set one of them first.")
            of = (
                NoticeRow.owner_id == account.id,
                NoticeRow.kind == Kind.TEST.value,
                col(NoticeRow.at) > now - gap,
            )
            if (await session.exec(select(NoticeRow.id).where(*of))).first() is not None:
                raise TooMany(f"A test was sent to {name} less than {gap.total_seconds():g} s ago.")
            text = f"This is a test of the notices for {name}, requested by {actor.name}."
            key = f"{Kind.TEST.value}:{account.id}:{now.isoformat()}"
            incident = Incident(key=key, kind=Kind.TEST, owner=name, owner_id=account.id, uuid="", name=name, text=text)
            row = _add(session, incident, now)
            await session.flush()
            _address(session, row, account, now)
            add_entry(session, AuditEntry(at=now, actor=actor, verb="test", kind="user", target=name))
            return _notice(row)

    @database_method
    async def take(self, now: datetime, again_at: datetime, limit: int) -> list[Delivery]:
        """Return the due deliveries, each counted as tried in advance: a crash neither adds nor loses a try.

        No other caller gets them before `again_at`.
        """
        query = (
            select(DeliveryRow, NoticeRow, AccountRow)
            .join(NoticeRow, col(NoticeRow.id) == col(DeliveryRow.notice_id))
            .join(AccountRow, col(AccountRow.name) == col(DeliveryRow.user))
            .where(col(DeliveryRow.next_try_at) <= now)
            .order_by(col(DeliveryRow.next_try_at), col(DeliveryRow.id))
            .limit(limit)
        )
        first = select(DeliveryRow.id).where(col(DeliveryRow.next_try_at) <= now).limit(1)
        async with self._database.read() as session:
            if (await session.exec(first)).first() is None:
                return []
        async with self._database.write() as session:
            await self._term.check(session)
            taken = []
            for row, notice, account in await session.exec(query):
                taken.append(_delivery(row, notice, account))
                row.attempts += 1
                row.next_try_at = again_at
                session.add(row)
            return taken

    @database_method
    async def settle(
        self, delivery_id: int, *, delivered_at: datetime | None, next_try_at: datetime | None, problem: str
    ) -> None:
        """Store the result of a try."""
        async with self._database.write() as session:
            await self._term.check(session)
            values = {"delivered_at": delivered_at, "next_try_at": next_try_at, "problem": problem}
            await session.exec(update(DeliveryRow).where(col(DeliveryRow.id) == delivery_id).values(**values))

    @database_method
    async def prune(self, older_than: datetime) -> int:
        """Delete old notices with their deliveries; return how many."""
        async with self._database.write() as session:
            result = await session.exec(delete(NoticeRow).where(col(NoticeRow.at) < older_than))
            return int(result.rowcount)


def _add(session: AsyncSession, incident: Incident, now: datetime) -> NoticeRow:
    row = NoticeRow(
        key=incident.key,
        at=now,
        kind=incident.kind.value,
        owner=incident.owner,
        owner_id=incident.owner_id,
        uuid=incident.uuid,
        name=incident.name,
        text=incident.text,
    )
    session.add(row)
    notify_on_commit(session, [incident.uuid] if incident.uuid else [])
    return row


def _concerns(row: NoticeRow, account: AccountRow) -> bool:
    if not row.owner_id:
        return account.role == Role.ADMIN.value
    # Administrators get the notice about the silent worker itself.
    return account.id == row.owner_id and (row.kind != Kind.UNREACHABLE.value or account.role != Role.ADMIN.value)


def _address(session: AsyncSession, row: NoticeRow, account: AccountRow, now: datetime) -> None:
    for channel in _channels(account):
        session.add(DeliveryRow(notice_id=row.id or 0, user=account.name, channel=channel.value, next_try_at=now))


def _channels(account: AccountRow) -> Iterable[Channel]:
    if account.webhook_url:
        yield Channel.WEBHOOK
    if account.email:
        yield Channel.MAIL


def _notice(row: NoticeRow) -> Notice:
    return Notice(
        id=row.id or 0,
        at=row.at,
        kind=row.kind,
        owner=row.owner,
        owner_id=row.owner_id,
        uuid=row.uuid,
        name=row.name,
        text=row.text,
        acknowledged_at=row.acknowledged_at,
        acknowledged_by=row.acknowledged_by,
    )


def _delivery(row: DeliveryRow, notice: NoticeRow, account: AccountRow) -> Delivery:
    verifies = notice.kind == Kind.VERIFY_EMAIL.value
    current = verifies and notice.at == account.email_requested_at  # a newer request has another code and address
    return Delivery(
        id=row.id or 0,
        user=row.user,
        channel=Channel(row.channel),
        attempts=row.attempts,
        notice=_notice(notice),
        email=(account.email_pending if current else "") if verifies else account.email,
        code=account.email_code if current else "",
        webhook_url=account.webhook_url,
        webhook_secret=account.webhook_secret,
    )


def _progress(row: DeliveryRow) -> DeliveryProgress:
    return DeliveryProgress(
        notice_id=row.notice_id,
        user=row.user,
        channel=Channel(row.channel),
        state=state(row.next_try_at, row.delivered_at),
        attempts=row.attempts,
        next_try_at=row.next_try_at,
        delivered_at=row.delivered_at,
        problem=row.problem,
    )
