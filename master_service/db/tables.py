"""The tables. Each has one writer: users write `vmachine`, reports `observed` and `worker`, the pusher `dispatch`.

The SQL is portable between SQLite and PostgreSQL. Times are UTC and aware on both.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any, ClassVar

from sqlalchemy import JSON, Column, DateTime, Dialect, ForeignKey, Index, Integer, MetaData, String, false, text
from sqlalchemy.types import TypeDecorator
from sqlmodel import Field, Relationship, SQLModel

# Constraints need names: SQLite changes a table only by copying it, and Alembic drops constraints by name.
NAMING = {
    "ix": "ix_%(table_name)s_%(column_0_name)s",
    "uq": "uq_%(table_name)s_%(column_0_name)s",
    "fk": "fk_%(table_name)s_%(column_0_name)s",
    "pk": "pk_%(table_name)s",
}


class UtcTime(TypeDecorator[datetime]):
    """An aware time in UTC; SQLite would drop the zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Store UTC. Raises ValueError for a naive time: a bug, not data."""
        del dialect
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError(f"naive time {value}: give it a zone")
        return value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return an aware time."""
        del dialect
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Table(SQLModel):
    """Base of all tables: one MetaData of our own, which has our names of constraints."""

    metadata: ClassVar[MetaData] = MetaData(naming_convention=NAMING)


def _account_id(*, index: bool = False) -> Any:
    """Return a column with the id of an account, which may be deleted. Empty: of no account, or of one unknown."""
    return Field(default="", max_length=16, index=index, sa_column_kwargs={"server_default": ""})


def _of_vm() -> Any:
    return Field(sa_column=Column(String(36), ForeignKey("vmachine.uuid", ondelete="CASCADE"), primary_key=True))


class VMachineRow(Table, table=True):
    """The desired state of one VM. The row stays after the destroy, so that its uuid still has an answer."""

    __tablename__ = "vmachine"
    __table_args__ = (
        # A name is free again when its VM is destroyed.
        Index(
            "uq_vmachine_live_name",
            "name",
            unique=True,
            sqlite_where=text("destroyed_at IS NULL"),
            postgresql_where=text("destroyed_at IS NULL"),
        ),
    )
    uuid: str = Field(primary_key=True, max_length=36)
    name: str = Field(max_length=63)
    owner: str = Field(max_length=63, index=True)
    owner_id: str = _account_id(index=True)
    spec: dict[str, Any] = Field(sa_type=JSON)
    status: str = Field(max_length=16)
    generation: int
    user_generation: int
    status_generation: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    from_image: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    version: int
    pin: str | None = Field(default=None, max_length=255)
    labels: dict[str, str] = Field(default_factory=dict, sa_type=JSON, sa_column_kwargs={"server_default": "{}"})
    protected: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    worker: str | None = Field(default=None, max_length=255, index=True)
    created_at: datetime = Field(sa_type=UtcTime)
    changed_at: datetime = Field(sa_type=UtcTime)
    destroyed_at: datetime | None = Field(default=None, sa_type=UtcTime)


class ObservedRow(Table, table=True):
    """The observed state of one VM: the last report of its worker."""

    __tablename__ = "observed"
    uuid: str = _of_vm()
    status: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    real_at: datetime | None = Field(default=None, sa_type=UtcTime)
    since: datetime | None = Field(default=None, sa_type=UtcTime)
    last_progress_at: datetime | None = Field(default=None, sa_type=UtcTime)
    missed_polls: int = 0
    tombstone: int | None = None
    elsewhere: str | None = Field(default=None, max_length=255)
    saves: dict[str, Any] = Field(default_factory=dict, sa_type=JSON, sa_column_kwargs={"server_default": "{}"})


class DispatchRow(Table, table=True):
    """The pusher's bookkeeping. If it is lost, commands are sent again, and workers know them by generation."""

    __tablename__ = "dispatch"
    uuid: str = _of_vm()
    user_generation: int = 0
    generation: int = 0
    verb: str | None = Field(default=None, max_length=16)
    jid: str | None = Field(default=None, max_length=32)
    sent_at: datetime | None = Field(default=None, sa_type=UtcTime)
    attempts: int = 0
    next_at: datetime | None = Field(default=None, sa_type=UtcTime)
    accepted: int = 0
    problem_code: str | None = Field(default=None, max_length=64)
    problem_message: str | None = None
    restarts: list[str] = Field(default_factory=list, sa_type=JSON)
    reboots: list[str] = Field(default_factory=list, sa_type=JSON, sa_column_kwargs={"server_default": "[]"})
    corrected_generation: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    rejected_by: list[str] = Field(default_factory=list, sa_type=JSON)


class WorkerRow(Table, table=True):
    """A hypervisor host, by its last answer to a poll. Users set `draining`, `fenced_at`, `key` and `api_url`.

    `key`: with which it signs, empty until it is enrolled. `claimed_key`: of a minion in its name, to be compared.
    `api_url`: where its worker API is, if it may be nowhere else.
    """

    __tablename__ = "worker"
    id: str = Field(primary_key=True, max_length=255)
    capacity: dict[str, Any] | None = Field(default=None, sa_type=JSON)
    version: str = Field(default="", max_length=63)
    seen_at: datetime | None = Field(default=None, sa_type=UtcTime)
    unreachable_since: datetime | None = Field(default=None, sa_type=UtcTime)
    draining: bool = False
    fenced_at: datetime | None = Field(default=None, sa_type=UtcTime)
    foreign: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    unassigned_vms: list[dict[str, Any]] = Field(default_factory=list, sa_type=JSON)
    problem: str | None = None
    key: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    claimed_key: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})
    api_url: str = Field(default="", max_length=2048, sa_column_kwargs={"server_default": ""})


class AccountRow(Table, table=True):
    """A user. `quota`: limits that differ from the settings.

    `email` was verified. `email_pending` waits for `email_code`, which is mailed to it.

    `id` is never given again, unlike the name. Rows that stay when the account is deleted refer to the id. Rows that
    are deleted with it refer to the name.
    """

    __tablename__ = "account"
    __table_args__ = (Index("uq_account_id", "id", unique=True),)
    id: str = Field(max_length=16, sa_column_kwargs={"server_default": ""})
    name: str = Field(primary_key=True, max_length=63)
    role: str = Field(max_length=16)
    created_at: datetime = Field(sa_type=UtcTime)
    password: str | None = Field(default=None, max_length=255)
    disabled: bool = Field(default=False, sa_column_kwargs={"server_default": false()})
    # Version 0.2 counted wrong passwords in these two, and may still run on the same database.
    failures: int = Field(default=0, sa_column_kwargs={"server_default": "0"})
    locked_until: datetime | None = Field(default=None, sa_type=UtcTime)
    quota: dict[str, int | None] = Field(default_factory=dict, sa_type=JSON, sa_column_kwargs={"server_default": "{}"})
    email: str = Field(default="", max_length=254, sa_column_kwargs={"server_default": ""})
    email_pending: str = Field(default="", max_length=254, sa_column_kwargs={"server_default": ""})
    email_code: str = Field(default="", max_length=32, sa_column_kwargs={"server_default": ""})
    email_requested_at: datetime | None = Field(default=None, sa_type=UtcTime)
    webhook_url: str = Field(default="", max_length=2048, sa_column_kwargs={"server_default": ""})
    webhook_secret: str = Field(default="", max_length=64, sa_column_kwargs={"server_default": ""})


class TokenRow(Table, table=True):
    """A bearer token: only its SHA-256 is stored, so a copy of the database gives no access."""

    __tablename__ = "token"
    sha256: str = Field(primary_key=True, max_length=64)
    id: str = Field(max_length=16, unique=True)
    user: str = Field(foreign_key="account.name", max_length=63)
    kind: str = Field(max_length=16)
    label: str = Field(default="", max_length=63)
    scopes: list[str] = Field(default_factory=list, sa_type=JSON)
    created_at: datetime = Field(sa_type=UtcTime)
    expires_at: datetime | None = Field(default=None, sa_type=UtcTime)
    last_used_at: datetime | None = Field(default=None, sa_type=UtcTime)
    revoked_at: datetime | None = Field(default=None, sa_type=UtcTime)


class HistoryRow(Table, table=True):
    """One change in a VM's history: of its desired state, its dispatch or its observed state."""

    __tablename__ = "history"
    id: int | None = Field(default=None, primary_key=True)
    uuid: str = Field(max_length=36, index=True)
    at: datetime = Field(sa_type=UtcTime, index=True)
    fact: str = Field(max_length=8)
    actor: str = Field(max_length=255)
    before: str = Field(max_length=32)
    after: str = Field(max_length=32)
    message: str = Field(max_length=500)
    generation: int
    cause: str = Field(default="", max_length=500)
    status: str = Field(default="", max_length=16)
    """The VM's status, in the master's words, right after the change."""


class IdempotencyRow(Table, table=True):
    """The answer to a change that came with an `Idempotency-Key`. `status` is null while the request is in progress."""

    __tablename__ = "idempotency"
    account_id: str = Field(primary_key=True, max_length=63)
    key: str = Field(primary_key=True, max_length=255)
    fingerprint: str = Field(max_length=64)
    at: datetime = Field(sa_type=UtcTime, index=True)
    status: int | None = None
    headers: dict[str, str] = Field(default_factory=dict, sa_type=JSON)
    body: str = ""


class AuditRow(Table, table=True):
    """One act: its actor, interface, verb and object. Append-only, and written in the transaction of the act.

    `uuid`: of a VM, else empty. `name`: the name of the object, or its id.
    """

    __tablename__ = "audit"
    id: int | None = Field(default=None, primary_key=True)
    at: datetime = Field(sa_type=UtcTime)
    actor: str = Field(max_length=63, index=True)
    actor_id: str = _account_id(index=True)
    interface: str = Field(max_length=16)
    verb: str = Field(max_length=32)
    kind: str = Field(default="vm", max_length=16, sa_column_kwargs={"server_default": "vm"})
    uuid: str = Field(max_length=36, index=True)
    name: str = Field(max_length=255)
    generation: int
    outcome: str = Field(default="done", max_length=16, index=True, sa_column_kwargs={"server_default": "done"})
    detail: str = Field(default="", sa_column_kwargs={"server_default": ""})
    jid: str = Field(default="", max_length=32, sa_column_kwargs={"server_default": ""})
    request_id: str = Field(default="", max_length=128, sa_column_kwargs={"server_default": ""})
    address: str = Field(default="", max_length=45, sa_column_kwargs={"server_default": ""})


class OperationRow(Table, table=True):
    """A requested change and its outcome. `id`: of the audit entry about the request, with which it is deleted.

    `actor` and `outcome` may differ from the entry's: of a login, both are known when its password has been checked.
    """

    __tablename__ = "operation"
    id: int | None = Field(
        default=None,
        sa_column=Column(
            Integer, ForeignKey("audit.id", ondelete="CASCADE"), primary_key=True, nullable=False, autoincrement=False
        ),
    )
    uuid: str = Field(max_length=36, index=True)
    verb: str = Field(max_length=32)
    generation: int
    actor: str = Field(max_length=63)
    actor_id: str = _account_id()
    interface: str = Field(max_length=16)
    requested_at: datetime = Field(sa_type=UtcTime)
    outcome: str = Field(max_length=16, index=True)
    detail: str
    jid: str = Field(max_length=32)
    entry: AuditRow = Relationship()


class NoticeRow(Table, table=True):
    """A notice to an account. All reports of one incident have the same `key`. Without `owner` it goes to admins."""

    __tablename__ = "notice"
    id: int | None = Field(default=None, primary_key=True)
    key: str = Field(max_length=511, unique=True)
    at: datetime = Field(sa_type=UtcTime)
    kind: str = Field(max_length=32)
    owner: str = Field(max_length=63, index=True)
    owner_id: str = _account_id(index=True)
    uuid: str = Field(max_length=36)
    name: str = Field(max_length=255)
    text: str
    acknowledged_at: datetime | None = Field(default=None, sa_type=UtcTime)
    acknowledged_by: str = Field(default="", max_length=63, sa_column_kwargs={"server_default": ""})


class DeliveryRow(Table, table=True):
    """The delivery of one notice to one account by one channel. `next_try_at` is null when it has ended."""

    __tablename__ = "delivery"
    id: int | None = Field(default=None, primary_key=True)
    notice_id: int = Field(sa_column=Column(ForeignKey("notice.id", ondelete="CASCADE"), nullable=False, index=True))
    user: str = Field(
        sa_column=Column(String(63), ForeignKey("account.name", ondelete="CASCADE"), nullable=False, index=True)
    )
    channel: str = Field(max_length=16)
    attempts: int = 0
    next_try_at: datetime | None = Field(default=None, sa_type=UtcTime, index=True)
    delivered_at: datetime | None = Field(default=None, sa_type=UtcTime)
    problem: str = ""


class LeaseRow(Table, table=True):
    """The master that leads. `epoch` counts changes of the holder, `renewals` its renewals."""

    __tablename__ = "lease"
    name: str = Field(primary_key=True, max_length=16)
    holder: str = Field(default="", max_length=255)
    epoch: int = 0
    renewals: int = 0
