"""A database of an older version: loads its rows as they were, and reads them through the HTTP interface."""

import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

import httpx2
from alembic import command
from sqlalchemy import JSON, Connection, DateTime, MetaData, null, select
from sqlalchemy import func as sql

from master_service.db.engine import Database, config
from tests.fixtures import FIXTURES

PASSWORD: Final = "dummy password of everybody"
"""The password of each user of the fixture."""

CALM: Final[Mapping[str, Any]] = {
    # No answer of the master depends on the time of the request: pending retries wait for decades.
    "retry_base_s": 1e9, "retry_cap_s": 1e9, "action_timeout_s": 1e9, "stuck_s": 1e9, "notice_retry_base_s": 2e9,
    "notice_retry_cap_s": 2e9, "restart_window_s": 1e9, "restart_limit": 2,
    "history_days": 36500.0, "audit_days": 36500.0, "idempotency_keep_s": 3e9, "token_max_s": 3.1e9,
    "block_timeout_s": 60.0,
}  # fmt: skip
"""Settings with which answers are compared."""

_AGES: Final = frozenset({"age_s", "last_used_at"})
"""Fields that tell when they were asked for."""


def rows(version: str) -> tuple[str, dict[str, list[dict[str, Any]]]]:
    """Revision and rows by table of a version's fixture."""
    found = json.loads((FIXTURES / version / "master/rows.json").read_text())
    return found["revision"], found["tables"]


async def load(database: Database, version: str) -> str:
    """Make the tables of that version, and put its rows in; the revision."""
    revision, tables = rows(version)

    def fill(connection: Connection) -> None:
        command.upgrade(config(connection), revision)
        metadata = MetaData()
        metadata.reflect(connection)  # not today's models: the tables are those of then
        for table in metadata.sorted_tables:
            values = [
                {name: _value(table.c[name].type, each) for name, each in row.items()}
                for row in tables.get(table.name, ())
            ]
            for row in values:
                connection.execute(table.insert().values(row))
            if connection.dialect.name == "postgresql" and "id" in table.c and table.c.id.type.python_type is int:
                sequence = sql.pg_get_serial_sequence(table.name, "id")
                connection.execute(
                    select(sql.setval(sequence, sql.greatest(select(sql.max(table.c.id)).scalar_subquery(), 1)))
                )

    async with database.engine.connect() as connection:
        await connection.run_sync(fill)
        await connection.commit()
    return revision


def _value(kind: Any, value: Any) -> Any:
    if isinstance(kind, JSON):
        if value is None:
            return null()
        return JSON.NULL if value == "@JSON_NULL@" else value
    return datetime.fromisoformat(value) if isinstance(kind, DateTime) and value is not None else value


async def move(database: Database, how: Any, revision: str) -> None:
    """Let Alembic bring the tables to another revision."""
    async with database.engine.connect() as connection:
        await connection.run_sync(lambda sync: how(config(sync), revision))
        await connection.commit()


async def answers(http: httpx2.AsyncClient) -> dict[str, Any]:
    """Everything that an administrator can read, by path, without the times of the request."""
    found: dict[str, Any] = {}

    async def get(path: str) -> Any:
        answer = await http.get(path)
        assert answer.status_code == 200, answer.text
        found[path] = timeless(answer.json())
        return found[path]

    for path in ("/workers", "/tokens", "/audit?limit=1000", "/notices?limit=1000", "/operations?limit=1000", "/plan"):
        await get(path)
    for user in await get("/users"):
        for part in ("quota", "contact"):
            await get(f"/users/{user['name']}/{part}")
    vms = [*(await get("/vmachines")), *(await get("/vmachines?status=destroyed"))]
    for vm in vms:
        await get(f"/vmachines/{vm['uuid']}")
        await get(f"/vmachines/{vm['uuid']}/history?limit=1000")
    return found


def timeless(value: Any) -> Any:
    """An answer without what tells when it was asked for."""
    if isinstance(value, dict):
        return {name: timeless(each) for name, each in value.items() if name not in _AGES}
    return [timeless(each) for each in value] if isinstance(value, list) else value
