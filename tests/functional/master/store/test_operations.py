"""Operations change, the audit does not: it only grows, until retention deletes from it."""

import ast
import re
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlmodel import select

import master_service
from master_service.core.clock import utc_now
from master_service.db.tables import AuditRow, OperationRow
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from tests.functional.master.databases import on_both

pytestmark = on_both
CHANGES_AUDIT = re.compile(r"^(UPDATE|DELETE FROM) \"?audit\"?\b", re.IGNORECASE)


@pytest.fixture
def statements(world):
    """All statements of the master from now on."""
    found = []
    engine = world.master.context.store.database.engine.sync_engine

    @event.listens_for(engine, "before_cursor_execute")
    def keep(_connection, _cursor, statement, *_more):
        found.append(statement)

    yield found
    event.remove(engine, "before_cursor_execute", keep)


async def rows(world, table):
    async with world.master.context.store.database.read() as session:
        return (await session.exec(select(table).order_by(table.id))).all()


async def outcomes(world, path, **query):
    answer = await world.http.get(path, params=query)
    return [(line["verb"], line["outcome"]) for line in answer.json()]


async def test_only_retention_changes_the_audit(world, statements):
    await world.create()
    await world.status("running")
    await world.ask("suspend")
    await world.status("paused")
    await world.ask("resume")
    await world.http.post("/tokens", json={"user": "admin", "password": "wrong password here"})
    await world.ask("destroy")
    await world.quiet()
    assert any(statement.startswith("UPDATE operation") for statement in statements)
    assert [statement for statement in statements if CHANGES_AUDIT.match(statement)] == []
    await world.master.context.store.audit.prune(utc_now() + timedelta(days=1))
    assert len([statement for statement in statements if CHANGES_AUDIT.match(statement)]) == 1
    assert (await rows(world, AuditRow), await rows(world, OperationRow)) == ([], [])


async def test_entry_shows_the_outcome_of_its_operation(world):
    vm = await world.create()
    await world.status("running")
    await world.quiet()
    (entry,) = [row for row in await rows(world, AuditRow) if row.kind == "vm"]
    (operation,) = await rows(world, OperationRow)
    assert (entry.outcome, operation.outcome, operation.id) == ("queued", "done", entry.id)
    for query in ({"vm": vm["uuid"]}, {"vm": "web01", "outcome": "done"}, {"kind": "vm", "actor": "admin"}):
        assert await outcomes(world, "/audit", **query) == [("create", "done")]
    assert await outcomes(world, "/audit", vm="web01", outcome="queued") == []
    assert await outcomes(world, "/operations") == [("create", "done")]


async def test_answers_to_our_commands_move_no_operation_of_others(world):
    vm = await world.create()
    await world.status("running")
    for interface, outcome in (("salt", Outcome.SENT), ("worker-api", Outcome.REFUSED)):
        entry = AuditEntry(
            at=utc_now(),
            actor=Actor(name="root", interface=interface),
            verb="shutdown",
            kind="vm",
            target="web01",
            uuid=vm["uuid"],
            outcome=outcome,
        )
        await world.master.context.store.audit.add(entry)
    await world.ask("suspend")
    await world.status("paused")
    await world.quiet()
    assert await outcomes(world, "/audit", interface="salt") == [("shutdown", "sent")]
    assert await outcomes(world, "/audit", interface="worker-api") == [("shutdown", "refused")]
    assert ("shutdown", "sent") not in await outcomes(world, "/operations")


def test_source_changes_the_audit_in_one_place():
    package = Path(master_service.__file__).parent
    users, changes = set(), []
    for path in package.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Name) and node.id == "AuditRow":
                users.add(str(path.relative_to(package)))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("update", "delete"):
                changes += [(path.name, node.func.id) for arg in node.args if ast.unparse(arg) == "AuditRow"]
    assert changes == [("audit.py", "delete")]
    assert users == {
        "db/tables.py", "store/audit.py", "store/desired.py", "store/mapping.py", "store/operations.py"
    }  # fmt: skip
