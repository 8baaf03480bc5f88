"""Users: the only writer of accounts. Each change and its line in the audit are one transaction."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import delete, func
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import BadRequest, Conflict, NameTaken, NotFound
from master_service.db.engine import Database, database_method
from master_service.db.tables import AccountRow, TokenRow, VMachineRow
from master_service.policy.accounts import Account, digest
from master_service.policy.audit import MASTER, Actor, AuditEntry
from master_service.policy.permissions import Role, Scope
from master_service.policy.quotas import NAMES, QuotaLimits, ResourceUsage, change_limits, total
from master_service.store.audit import add_entry
from master_service.store.desired import limits_of, vms_of
from master_service.store.mapping import lock_account
from master_service.store.notices import mail_code

FIRST = "admin"
"""The account of the token in `admin_token_file`: it always exists and is always an administrator."""
_CODE_LIFE: Final = timedelta(days=7)
_NO_REQUEST: Final[Mapping[str, Any]] = {"email_pending": "", "email_code": "", "email_requested_at": None}
_UNDESCRIBED: Final = ("email_code", "email_requested_at")


class AccountStore:
    """Writer and reader of accounts."""

    def __init__(self, database: Database) -> None:
        self._database = database

    @database_method
    async def ensure_admin(self, token: str, now: datetime) -> None:
        """Ensure that the administrator exists, with this token from the settings and no older one."""
        sha256 = digest(token)
        async with self._database.write() as session:
            if await session.get(AccountRow, FIRST) is None:
                first = Account(name=FIRST, role=Role.ADMIN, created_at=now)
                session.add(AccountRow(id=first.id, name=FIRST, role=Role.ADMIN.value, created_at=now))
                add_entry(session, AuditEntry(at=now, actor=MASTER, verb="create", kind="user", target=FIRST))
                await session.flush()
            await session.exec(delete(TokenRow).where(col(TokenRow.kind) == "settings", col(TokenRow.sha256) != sha256))
            if await session.get(TokenRow, sha256) is None:
                session.add(
                    TokenRow(
                        sha256=sha256,
                        id=sha256[:16],
                        user=FIRST,
                        kind="settings",
                        label="admin_token_file",
                        scopes=[scope.value for scope in Scope],
                        created_at=now,
                    )
                )

    @database_method
    async def accounts(self, only: str | None = None) -> list[Account]:
        """Return all accounts, or one of them, sorted by name."""
        vms = (
            select(func.count())
            .where(col(VMachineRow.owner_id) == col(AccountRow.id), col(VMachineRow.destroyed_at).is_(None))
            .scalar_subquery()
        )
        query = select(AccountRow, vms).order_by(AccountRow.name)
        if only is not None:
            query = query.where(AccountRow.name == only)
        async with self._database.read() as session:
            return [account_of(row, count) for row, count in await session.exec(query)]

    async def account(self, name: str) -> Account | None:
        """Return one account, or None if it does not exist."""
        found = await self.accounts(name)
        return found[0] if found else None

    @database_method
    async def quota(self, name: str, default: QuotaLimits) -> tuple[ResourceUsage, QuotaLimits]:
        """Return the resources that an account uses, and its quota. Raises NotFound."""
        async with self._database.read() as session:
            account = await session.get(AccountRow, name)
            if account is None:
                raise NotFound(f"There is no user {name!r}.")
            used = total(await vms_of(session, account.id))
            return used, dict.fromkeys(NAMES) | dict(limits_of(account, default))

    @database_method
    async def add(self, account: Account, password: str | None, actor: Actor) -> None:
        """Store a new account; `password`: its digest. Raises NameTaken."""
        try:
            async with self._database.write() as session:
                session.add(
                    AccountRow(
                        id=account.id,
                        name=account.name,
                        role=account.role.value,
                        created_at=account.created_at,
                        password=password,
                        email=account.email,
                        webhook_url=account.webhook_url,
                    )
                )
                entry = AuditEntry(at=account.created_at, actor=actor, verb="create", kind="user", target=account.name)
                add_entry(session, entry)
        except IntegrityError as err:
            raise NameTaken(f"There is a user named {account.name} already.", "Choose another name.") from err

    @database_method
    async def change(  # noqa: PLR0913 - what a change says
        self,
        name: str,
        columns: Mapping[str, Any],
        actor: Actor,
        now: datetime,
        *,
        verified: bool = False,
        kept: str | None = None,
    ) -> None:
        """Set columns of an account: role, disabled, email, webhook_url, password (its digest), or limits of its quota.

        A new password, and disabling, end all sessions of the account. An email that is not `verified` is pending until
        the code that is mailed to it comes back. `kept`: the digest of the password that the account must still have.
        Raises NotFound, Conflict, TooMany.
        """
        if name == FIRST and (columns.get("disabled") or columns.get("role", Role.ADMIN) != Role.ADMIN):
            raise Conflict(
                f"{FIRST} owns the token of `admin_token_file` and stays an administrator.", "Choose another account."
            )
        async with self._database.write() as session:
            row = await lock_account(session, name, actor)
            if kept is not None and row.password != kept:
                raise Conflict(f"The account {name} was changed meanwhile.", "Log in again.")
            if "quota" in columns:
                columns = {**columns, "quota": change_limits(row.quota, columns["quota"])}
            if "email" in columns:
                columns = {**columns, **await _email_columns(session, row, columns["email"], now, verified=verified)}
            for column, value in columns.items():
                setattr(row, column, value)
            session.add(row)
            if "password" in columns or columns.get("disabled"):
                sessions = (col(TokenRow.user) == name, col(TokenRow.kind) == "session")
                await session.exec(delete(TokenRow).where(*sessions))
            described = {column: value for column, value in columns.items() if column not in _UNDESCRIBED}
            message = ", ".join(_describe_change(column, value) for column, value in sorted(described.items()))
            add_entry(session, AuditEntry(at=now, actor=actor, verb="modify", kind="user", target=name, detail=message))

    @database_method
    async def verify_email(self, name: str, code: str, actor: Actor, now: datetime) -> None:
        """Use the pending address of an account from now on. Raises NotFound, BadRequest if the code is not its own."""
        async with self._database.write() as session:
            row = await lock_account(session, name, actor)
            fresh = row.email_requested_at is not None and now < row.email_requested_at + _CODE_LIFE
            if not (row.email_code and fresh and hmac.compare_digest(row.email_code.encode(), code.strip().encode())):
                raise BadRequest([("code", "is not the code in the newest mail, or is too old; set the address again")])
            row.email = row.email_pending
            for column, value in _NO_REQUEST.items():
                setattr(row, column, value)
            session.add(row)
            message = f"email={row.email}, verified"
            add_entry(session, AuditEntry(at=now, actor=actor, verb="modify", kind="user", target=name, detail=message))

    @database_method
    async def remove(self, name: str, actor: Actor, now: datetime) -> None:
        """Delete an account with its tokens. Raises NotFound; Conflict while it owns VMs."""
        if name == FIRST:
            raise Conflict(f"{FIRST} owns the token of `admin_token_file`.", "Choose another account.")
        async with self._database.write() as session:
            row = await lock_account(session, name, actor)
            own = select(VMachineRow.name).where(
                VMachineRow.owner_id == row.id, col(VMachineRow.destroyed_at).is_(None)
            )
            if names := sorted(await session.exec(own)):
                message = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                raise Conflict(f"{name} owns {len(names)} VMs ({message}).", "Destroy them first, or disable the user.")
            await session.exec(delete(TokenRow).where(col(TokenRow.user) == name))
            await session.delete(row)
            add_entry(session, AuditEntry(at=now, actor=actor, verb="delete", kind="user", target=name))


def account_of(row: AccountRow, vms: int = 0) -> Account:
    """Return a row as a value."""
    return Account(
        id=row.id,
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        disabled=row.disabled,
        has_password=row.password is not None,
        email=row.email,
        webhook_url=row.webhook_url,
        vms=vms,
    )


async def _email_columns(
    session: AsyncSession, row: AccountRow, address: str, now: datetime, *, verified: bool
) -> Mapping[str, Any]:
    """Return the columns of an account that wants mail at an address: the one in use stays until it is verified."""
    if verified or address in ("", row.email):
        return {"email": address, **_NO_REQUEST}
    code = await mail_code(session, row, address, now)
    return {"email": row.email, "email_pending": address, "email_code": code, "email_requested_at": now}


def _describe_change(column: str, value: Any) -> str:
    """Return a change as the audit shows it, without secrets. A webhook's URL may contain one."""
    return column if column in ("password", "webhook_url", "webhook_secret") else f"{column}={value}"
