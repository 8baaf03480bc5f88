"""Engine, transactions and migrations. The URL selects SQLite (WAL, synchronous=FULL) or PostgreSQL."""

from __future__ import annotations

import asyncio
import functools
import secrets
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import msgspec
import psycopg
import structlog
from alembic import command
from alembic.config import Config
from sqlalchemy import URL, Connection, Engine, event, func, select
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncTransaction, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

from master_service.core.database_url import url_of
from master_service.core.errors import DatabaseAway, DatabaseFull, MasterError

log = structlog.get_logger()
_BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "saltern_writes"
_CHANGED_KEY: Final = "saltern_changed"
CHANNEL: Final = "saltern_changes"
ALL: Final = "*"
POLL: Final = "poll"
_MAX_NOTIFIED: Final = 150  # a notification may have 8,000 bytes
_MIGRATING: Final = 5_411_713
_MIGRATIONS: Final = Path(__file__).parent / "migrations"
_DISK_FULL: Final = "53100"
_RETRIED: Final = frozenset({"40001", "40P01"})
"""SQLSTATE of a serialization failure and of a deadlock: the transaction had no effects, and may be retried."""
_RETRY_AFTER_S: Final = (0.05, 0.2, 0.8)
"""The pauses before the retries. Without a pause a retry can lock its first row before the other transaction wakes up,
and both meet again."""
_PROBLEMS: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PROTOCOL,
        sqlite3.SQLITE_NOTADB,
    }
)
"""SQLite's result codes for problems that the statement did not cause."""

_OPTIONS: Final[dict[str, Any]] = {
    # Errors go to the log, and parameters contain secrets of webhooks and digests of passwords.
    "hide_parameters": True,
    # msgspec takes a quarter of the time of json, which counts when ten thousand rows are read.
    "json_serializer": lambda value: msgspec.json.encode(value).decode(),
    "json_deserializer": msgspec.json.decode,
}
_POSTGRESQL: Final[dict[str, Any]] = {
    "connect_timeout": 10,
    # A server that vanishes is noticed within half a minute.
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 25_000,
    # Otherwise a master that is stopped in a transaction would hold its locks, such as the lease, for ever.
    "options": "-c timezone=UTC -c lock_timeout=10s -c statement_timeout=60s "
    "-c idle_in_transaction_session_timeout=10s",
}


_P = ParamSpec("_P")
_T = TypeVar("_T")
Effect = Callable[[], Awaitable[None]]


class UnitOfWork:
    """One transaction, and its effects outside the database: they run after the commit, and a rollback drops them."""

    def __init__(self, connection: AsyncConnection, transaction: AsyncTransaction) -> None:
        self.connection: Final = connection
        self.transaction: Final = transaction
        self.effects: Final[list[Effect]] = []

    def after_commit(self, effect: Effect) -> None:
        """Run `effect` once the transaction is committed. Its exceptions reach the caller that opened the unit."""
        self.effects.append(effect)


_UNIT: ContextVar[UnitOfWork | None] = ContextVar("unit_of_work", default=None)
_SHIELDED: ContextVar[asyncio.Task[Any] | None] = ContextVar("shielded", default=None)
"""The task of the shielded method that runs now. Tasks that it starts are not shielded."""


def database_method(method: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Decorate a method that does its work in transactions: cancellation does not interrupt it, and it may be retried.

    A statement that is cancelled half-way costs its connection, and a second cancellation while that is being closed
    waits for ever on aiosqlite's thread. Transactions here are short: shutting down waits for them.

    PostgreSQL may abort a transaction because of others that run at the same time. It has no effects then, and the
    method is retried up to three times.

    A decorated method that another one awaits runs in the same task, so that a unit of work does not wait for the loop
    while it holds SQLite's lock.
    """

    async def with_retry(*arguments: _P.args, **parameters: _P.kwargs) -> _T:
        for pause_s in _RETRY_AFTER_S:
            try:
                return await method(*arguments, **parameters)
            except DBAPIError as error:
                # Inside a unit of work the transaction of the whole unit is aborted.
                if getattr(error.orig, "sqlstate", None) not in _RETRIED or _UNIT.get() is not None:
                    raise
                log.info("transaction_retried", work=method.__qualname__, error=type(error.orig).__name__)
            await asyncio.sleep(pause_s)
        return await method(*arguments, **parameters)

    @functools.wraps(method)
    async def whole(*arguments: _P.args, **parameters: _P.kwargs) -> _T:
        if _SHIELDED.get() is asyncio.current_task():
            return await with_retry(*arguments, **parameters)

        async def shielded() -> _T:
            _SHIELDED.set(asyncio.current_task())
            return await with_retry(*arguments, **parameters)

        task = asyncio.ensure_future(shielded())
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            if not task.cancelled() and (error := task.exception()):
                log.info("interrupted_work_failed", work=method.__qualname__, error=type(error).__name__)
            raise

    return whole


@asynccontextmanager
async def _session_of(unit: UnitOfWork) -> AsyncIterator[AsyncSession]:
    """Open a session in the transaction of a unit.

    `async with AsyncSession` closes it in another task, and this one would wait for the loop while it holds SQLite's
    lock. The callers are `database_method`s, which no cancellation interrupts.
    """
    session = AsyncSession(unit.connection, expire_on_commit=False, join_transaction_mode="create_savepoint")
    try:
        yield session
    finally:
        await session.close()


def classify_database_error(error: SQLAlchemyError) -> MasterError | None:
    """Return an error for users if the database itself has a problem, or None if the error is a bug of ours.

    Source: SQLite's primary result codes, which are the low byte; SQLSTATE of PostgreSQL and psycopg's classes.
    """
    if isinstance(error, PoolTimeout):
        return DatabaseAway("The master's database is too slow: no connection became free in time.")
    cause = error.orig if isinstance(error, DBAPIError) else None
    code = getattr(cause, "sqlite_errorcode", None)
    if getattr(cause, "sqlstate", None) == _DISK_FULL or (code is not None and code & 0xFF == sqlite3.SQLITE_FULL):
        return DatabaseFull("The disk of the master's database is full. Nothing was changed.")
    has_problem = (
        code & 0xFF in _PROBLEMS
        if code is not None
        else isinstance(cause, psycopg.OperationalError | psycopg.InterfaceError)
    )
    return DatabaseAway("The master's database does not answer, or cannot use its disk.") if has_problem else None


class Database:
    """Sessions on one database. `read` sees one snapshot; `write` commits at its end, durably, or not at all."""

    def __init__(self, url: str | URL) -> None:
        parsed = url_of(url) if isinstance(url, str) else url
        self.origin: Final = secrets.token_hex(8)
        """Marks the notifications that this process sends."""
        self.file: Path | None = None
        """The file of SQLite."""
        self.conninfo: str | None = None
        """The connection string for libpq, with the password; None with SQLite."""
        if parsed.get_backend_name() == "sqlite":
            self.engine: AsyncEngine = create_async_engine(parsed, **_OPTIONS)
            self._reader = self.engine
            self._writer = self.engine.execution_options(**{_WRITES: True})
            _configure_sqlite(self.engine.sync_engine)
            if parsed.database and parsed.database != ":memory:":
                self.file = Path(parsed.database)
                self.file.parent.mkdir(parents=True, exist_ok=True)
        else:
            # Each connection is checked before use: the server may have been restarted since.
            self.engine = create_async_engine(parsed, pool_pre_ping=True, connect_args=_POSTGRESQL, **_OPTIONS)
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
            self._writer = self.engine
            self.conninfo = parsed.set(drivername="postgresql").render_as_string(hide_password=False)

    @asynccontextmanager
    async def unit_of_work(self, *, dry_run: bool = False) -> AsyncIterator[UnitOfWork]:
        """Make everything that this task reads and writes in the block one transaction.

        The transaction is committed at the end of the block, and its effects run after that. An exception rolls it
        back and drops the effects, and so does `dry_run`. A unit inside another one is a part of it.
        """
        if (outer := _UNIT.get()) is not None:
            yield outer
            return
        async with self._writer.connect() as connection:
            transaction = await connection.begin()
            unit = UnitOfWork(connection, transaction)
            token = _UNIT.set(unit)
            try:
                yield unit
                if not dry_run:
                    await transaction.commit()
            finally:
                _UNIT.reset(token)
                if transaction.is_active:
                    await transaction.rollback()
        if not dry_run:
            for effect in unit.effects:
                await effect()

    @property
    def is_in_unit(self) -> bool:
        """Whether this task has a unit of work open, within which it must not wait for others."""
        return _UNIT.get() is not None

    async def end_dry_run(self) -> None:
        """Roll a dry run back before its block ends: what follows waits for others, and holds no lock or connection."""
        if (unit := _UNIT.get()) is not None:
            await unit.transaction.rollback()
            await unit.connection.close()
            _UNIT.set(None)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """Open a session that only reads."""
        if (unit := _UNIT.get()) is not None:
            async with _session_of(unit) as session:
                yield session
            return
        async with AsyncSession(self._reader) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Open a transaction: it is committed when the block ends, and rolled back when the block raises."""
        unit = _UNIT.get()
        opened = _session_of(unit) if unit else AsyncSession(self._writer, expire_on_commit=False)
        async with opened as session, session.begin():
            yield session
            changed = session.info.get(_CHANGED_KEY)
            if changed and self.conninfo is not None:
                words = ALL if len(changed) > _MAX_NOTIFIED else " ".join(changed)
                await self._notify(await session.connection(), words)

    @database_method
    async def ask_for_poll(self) -> None:
        """Ask the leading master on the same database to poll all workers soon. Has no effect with SQLite."""
        if self.conninfo is not None:
            async with self.engine.begin() as connection:
                await self._notify(connection, POLL)

    async def _notify(self, connection: AsyncConnection, words: str) -> None:
        await connection.execute(select(func.pg_notify(CHANNEL, f"{self.origin} {words}")))

    async def migrate(self) -> None:
        """Upgrade the tables to the newest revision."""
        async with self.engine.connect() as connection:
            if self.conninfo is not None:  # several masters may start at once
                await connection.execute(select(func.pg_advisory_xact_lock(_MIGRATING)))
            await connection.run_sync(upgrade)
            await connection.commit()

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def notify_on_commit(session: AsyncSession, uuids: Iterable[str]) -> None:
    """Notify other masters on the same database, when this transaction is committed, that these VMs changed."""
    session.info.setdefault(_CHANGED_KEY, set()).update(uuids)


def config(connection: Connection | None = None) -> Config:
    """Return Alembic's configuration, without a file. `connection`: the one to work on."""
    made = Config()
    made.set_main_option("script_location", str(_MIGRATIONS))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Upgrade to the newest revision on this connection."""
    command.upgrade(config(connection), "head")


def _configure_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # BEGIN is sent below
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # durable before answered
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes the lock at once. If it read first and wrote later, a write by another in between would make
        # it fail with "database is locked", in spite of the busy timeout.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
