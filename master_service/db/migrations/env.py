"""Alembic's entry: runs the revisions on the connection that `master_service.db.engine` hands over."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import sqlalchemy as sa
from alembic import context

from master_service.db import tables

if TYPE_CHECKING:
    from alembic.autogenerate.api import AutogenContext
    from sqlalchemy import Connection


def render_item(kind: str, item: Any, _context: AutogenContext) -> str | Literal[False]:
    """Write plain SQLAlchemy types into revisions: an old revision must not change with our own classes."""
    if kind == "type" and isinstance(item, tables.UtcTime):
        return "sa.DateTime(timezone=True)"
    if kind == "type" and isinstance(item, sa.types.TypeDecorator) and isinstance(item.impl, sa.String):
        return f"sa.String({f'length={item.impl.length}' if item.impl.length else ''})"
    return False


connection: Connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=tables.Table.metadata,
    render_as_batch=True,  # SQLite cannot alter most things in place
    render_item=render_item,
    compare_type=True,
)
with context.begin_transaction():
    context.run_migrations()
