"""Secrets in URIs are masked in all rows: version 0.1 accepted presigned URLs, and stored and showed them.

Revision 0014; before it: 0013.
"""

from __future__ import annotations

from typing import Any, Final

import sqlalchemy as sa
from alembic import op

from worker_service.contract.uri_secrets import masked, masked_values

revision: str = "0014"
down_revision: str | None = "0013"

_TEXTS: Final = (
    ("history", "message"),
    ("audit", "name"),
    ("audit", "detail"),
    ("operation", "detail"),
    ("notice", "text"),
    ("delivery", "problem"),
    ("dispatch", "problem_message"),
    ("worker", "problem"),
    ("idempotency", "body"),
)
_VALUES: Final = (("vmachine", "spec"), ("observed", "status"), ("worker", "capacity"))


def upgrade() -> None:
    """Apply."""
    for table, column in _TEXTS:
        _mask(table, sa.column(column, sa.String()))
    for table, column in _VALUES:
        _mask(table, sa.column(column, sa.JSON()))


def downgrade() -> None:
    """Take back: what is masked stays so, and the version before can read it."""


def _mask(table: str, column: sa.ColumnClause[Any]) -> None:
    connection = op.get_bind()
    names = sa.inspect(connection).get_pk_constraint(table)["constrained_columns"]
    rows = sa.table(table, column, *map(sa.column, names))
    keys = [rows.c[name] for name in names]
    has_uri = sa.cast(rows.c[column.name], sa.String()).like("%//%")
    for value, *key in connection.execute(sa.select(rows.c[column.name], *keys).where(has_uri)).all():
        made = masked(value) if isinstance(value, str) else masked_values(value)
        if made != value:
            this = sa.and_(*(known == given for known, given in zip(keys, key, strict=True)))
            connection.execute(sa.update(rows).where(this).values({column.name: made}))
