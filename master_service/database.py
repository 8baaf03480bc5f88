"""The database: engine, transactions, migrations. SQLite (WAL, synchronous=FULL) or PostgreSQL, from a URL."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, Engine, event, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlmodel.ext.asyncio.session import AsyncSession

_BUSY_TIMEOUT_MS: Final = 10_000
_WRITES: Final = "saltern_writes"
_MIGRATIONS: Final = Path(__file__).parent / "migrations"


_P = ParamSpec("_P")
_T = TypeVar("_T")


def uninterrupted(method: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Let a method that talks to the database come to its end although its caller is cancelled meanwhile.

    A statement that is cancelled half-way costs its connection, and a second cancellation while that is being closed
    waits for ever on aiosqlite's thread. Transactions here are short: shutting down waits for them.
    """

    @functools.wraps(method)
    async def whole(*arguments: _P.args, **parameters: _P.kwargs) -> _T:
        task = asyncio.ensure_future(method(*arguments, **parameters))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            await asyncio.wait([task])
            raise

    return whole


class Database:
    """Sessions on one database. `read` sees one snapshot; `write` commits at its end, durably, or not at all."""

    def __init__(self, url: str) -> None:
        self.engine: AsyncEngine = create_async_engine(url)
        self._writer = self.engine.execution_options(**{_WRITES: True})
        parsed = make_url(url)
        if parsed.get_backend_name() == "sqlite":
            _tame_sqlite(self.engine.sync_engine)
            if parsed.database and parsed.database != ":memory:":
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that only reads."""
        async with AsyncSession(self.engine) as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """A transaction: committed when the block ends, rolled back when it raises."""
        async with AsyncSession(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    async def migrate(self) -> None:
        """Bring the tables to the newest revision."""
        async with self.engine.connect() as connection:
            await connection.run_sync(upgrade)
            await connection.commit()

    async def close(self) -> None:
        """Close all connections."""
        await self.engine.dispose()


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, without a file. `connection`: the one to work on."""
    made = Config()
    made.set_main_option("script_location", str(_MIGRATIONS))
    made.attributes["connection"] = connection
    return made


def upgrade(connection: Connection) -> None:
    """Upgrade to the newest revision on this connection."""
    command.upgrade(config(connection), "head")


def _tame_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def _on_connect(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # durable before answered
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _on_begin(connection: Connection) -> None:
        # A writer takes the lock at once: one that reads first and writes later would fail with "database is locked",
        # whatever the busy timeout, when somebody else wrote in between.
        writes = connection.get_execution_options().get(_WRITES)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
