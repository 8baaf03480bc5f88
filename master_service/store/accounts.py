"""Users: the only writer of accounts. Each change and its line in the audit are one transaction."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from sqlalchemy import delete, func
from sqlalchemy.exc import IntegrityError
from sqlmodel import col, select
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.errors import Conflict, NameTaken, NotFound
from master_service.db.engine import Database, database_method
from master_service.db.tables import AccountRow, TokenRow, VMachineRow
from master_service.policy.accounts import Account, digest
from master_service.policy.audit import MASTER, Actor, AuditEntry
from master_service.policy.permissions import Role, Scope
from master_service.policy.quotas import NAMES, QuotaLimits, ResourceUsage, total
from master_service.store.audit import add_entry
from master_service.store.desired import limits_of, specs_of

FIRST = "admin"
"""The account of the token in `admin_token_file`: it always exists and is always an administrator."""


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
                session.add(AccountRow(name=FIRST, role=Role.ADMIN.value, created_at=now))
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
            .where(col(VMachineRow.owner) == col(AccountRow.name), col(VMachineRow.destroyed_at).is_(None))
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
        """Return the resources that an account uses, and its quota."""
        async with self._database.read() as session:
            used = total(await specs_of(session, name))
            return used, dict.fromkeys(NAMES) | dict(await limits_of(session, name, default))

    @database_method
    async def add(self, account: Account, password: str | None, actor: Actor) -> None:
        """Store a new account; `password`: its digest. Raises NameTaken."""
        try:
            async with self._database.write() as session:
                session.add(
                    AccountRow(
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
    async def change(self, name: str, columns: Mapping[str, Any], actor: Actor, now: datetime) -> None:
        """Set columns of an account: role, disabled, email, webhook_url, quota, password (its digest).

        A new password, and disabling, end all sessions of the account. Raises NotFound, Conflict.
        """
        if name == FIRST and (columns.get("disabled") or columns.get("role", Role.ADMIN) != Role.ADMIN):
            raise Conflict(
                f"{FIRST} owns the token of `admin_token_file` and stays an administrator.", "Choose another account."
            )
        async with self._database.write() as session:
            row = await _locked(session, name)
            for column, value in columns.items():
                setattr(row, column, value)
            session.add(row)
            if "password" in columns or columns.get("disabled"):
                sessions = (col(TokenRow.user) == name, col(TokenRow.kind) == "session")
                await session.exec(delete(TokenRow).where(*sessions))
            message = ", ".join(_describe_change(column, value) for column, value in sorted(columns.items()))
            add_entry(session, AuditEntry(at=now, actor=actor, verb="modify", kind="user", target=name, detail=message))

    @database_method
    async def remove(self, name: str, actor: Actor, now: datetime) -> None:
        """Delete an account with its tokens. Raises NotFound; Conflict while it owns VMs."""
        if name == FIRST:
            raise Conflict(f"{FIRST} owns the token of `admin_token_file`.", "Choose another account.")
        async with self._database.write() as session:
            row = await _locked(session, name)
            own = select(VMachineRow.name).where(VMachineRow.owner == name, col(VMachineRow.destroyed_at).is_(None))
            if names := sorted(await session.exec(own)):
                message = ", ".join(names[:5]) + (", …" if len(names) > 5 else "")
                raise Conflict(f"{name} owns {len(names)} VMs ({message}).", "Destroy them first, or disable the user.")
            await session.exec(delete(TokenRow).where(col(TokenRow.user) == name))
            await session.delete(row)
            add_entry(session, AuditEntry(at=now, actor=actor, verb="delete", kind="user", target=name))


def account_of(row: AccountRow, vms: int = 0) -> Account:
    """Return a row as a value."""
    return Account(
        name=row.name,
        role=Role(row.role),
        created_at=row.created_at,
        disabled=row.disabled,
        has_password=row.password is not None,
        email=row.email,
        webhook_url=row.webhook_url,
        vms=vms,
    )


async def _locked(session: AsyncSession, name: str) -> AccountRow:
    row = await session.get(AccountRow, name, with_for_update=True)
    if row is None:
        raise NotFound(f"There is no user {name!r}.")
    return row


def _describe_change(column: str, value: Any) -> str:
    """Return a change as the audit shows it, without secrets. A webhook's URL may contain one."""
    return column if column in ("password", "webhook_url", "webhook_secret") else f"{column}={value}"
