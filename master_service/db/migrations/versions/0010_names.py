"""One word for one concept: tables, columns and stored words get the names that the code has.

Revision 0010; before it: 0009.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import sqlalchemy as sa
from alembic import op

revision: str = "0010"
down_revision: str | None = "0009"

_COLUMNS: Final = (
    ("vmachine", "wanted", "status"),
    ("vmachine", "asked", "user_generation"),
    ("worker", "strangers", "unassigned_vms"),
    ("history", "who", "actor"),
    ("history", "told", "message"),
    ("audit", "who", "actor"),
    ("audit", "door", "interface"),
    ("lease", "beat", "renewals"),
)
_WORDS: Final = (
    ("history", "fact", {"wanted": "desired", "push": "dispatch", "real": "observed"}),
    ("audit", "outcome", {"asked": "queued", "taken": "accepted", "overtaken": "superseded"}),
    ("audit", "interface", {"facade": "worker-api"}),
)


def upgrade() -> None:
    """Apply."""
    _create_observed("observed", "last_progress_at", "missed_polls")
    _move("real", "observed", {"moved_at": "last_progress_at", "misses": "missed_polls"})
    _create_dispatch("dispatch", ("user_generation", "restarts", "corrected_generation", "rejected_by"))
    renamed = {"asked": "user_generation", "redone": "restarts", "corrected": "corrected_generation"}
    _move("push", "dispatch", {**renamed, "tried": "rejected_by"})
    op.execute("ALTER TABLE reply RENAME TO idempotency")
    _rename_constraints("reply", "idempotency")
    for table, old, new in _COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {old} TO {new}")
    _rename_index("ix_audit_who", "ix_audit_actor", "audit", ["actor"])
    _rename_index("ix_reply_at", "ix_idempotency_at", "idempotency", ["at"])
    for table, column, words in _WORDS:
        _replace(table, column, words)


def downgrade() -> None:
    """Take back."""
    for table, column, words in _WORDS:
        _replace(table, column, {new: old for old, new in words.items()})
    _rename_index("ix_idempotency_at", "ix_reply_at", "idempotency", ["at"])
    _rename_index("ix_audit_actor", "ix_audit_who", "audit", ["actor"])
    for table, old, new in _COLUMNS:
        op.execute(f"ALTER TABLE {table} RENAME COLUMN {new} TO {old}")
    op.execute("ALTER TABLE idempotency RENAME TO reply")
    _rename_constraints("idempotency", "reply")
    _create_dispatch("push", ("asked", "redone", "corrected", "tried"))
    renamed = {"user_generation": "asked", "restarts": "redone", "corrected_generation": "corrected"}
    _move("dispatch", "push", {**renamed, "rejected_by": "tried"})
    _create_observed("real", "moved_at", "misses")
    _move("observed", "real", {"last_progress_at": "moved_at", "missed_polls": "misses"})


def _create_observed(table: str, last_progress_at: str, missed_polls: str) -> None:
    op.create_table(
        table,
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("status", sa.JSON(), nullable=True),
        sa.Column("real_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column(last_progress_at, sa.DateTime(timezone=True), nullable=True),
        sa.Column(missed_polls, sa.Integer(), nullable=False),
        sa.Column("tombstone", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["uuid"], ["vmachine.uuid"], name=op.f(f"fk_{table}_uuid"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uuid", name=op.f(f"pk_{table}")),
    )


def _create_dispatch(table: str, names: Sequence[str]) -> None:
    user_generation, restarts, corrected_generation, rejected_by = names
    op.create_table(
        table,
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column(user_generation, sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=True),
        sa.Column("jid", sa.String(length=32), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("problem_code", sa.String(length=64), nullable=True),
        sa.Column("problem_message", sa.String(), nullable=True),
        sa.Column(restarts, sa.JSON(), nullable=False),
        sa.Column("reboots", sa.JSON(), server_default="[]", nullable=False),
        sa.Column(corrected_generation, sa.Integer(), server_default="0", nullable=False),
        sa.Column(rejected_by, sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["uuid"], ["vmachine.uuid"], name=op.f(f"fk_{table}_uuid"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uuid", name=op.f(f"pk_{table}")),
    )


def _move(old: str, new: str, renamed: Mapping[str, str]) -> None:
    """Copy all rows into an existing table, and drop the old one: SQLite cannot rename constraints."""
    source = sa.inspect(op.get_bind()).get_columns(old)
    columns = [column["name"] for column in source]
    into = ", ".join(renamed.get(name, name) for name in columns)
    op.execute(f"INSERT INTO {new} ({into}) SELECT {', '.join(columns)} FROM {old}")  # noqa: S608 - names of ours
    op.drop_table(old)


def _rename_constraints(old: str, new: str) -> None:
    """Rename the primary key of a renamed table. SQLite keeps the old name, which has no effect."""
    if op.get_bind().dialect.name != "sqlite":
        op.execute(f"ALTER TABLE {new} RENAME CONSTRAINT pk_{old} TO pk_{new}")


def _rename_index(old: str, new: str, table: str, columns: list[str]) -> None:
    op.drop_index(old, table_name=table)
    op.create_index(new, table, columns, unique=False)


def _replace(table: str, column: str, words: Mapping[str, str]) -> None:
    rows = sa.table(table, sa.column(column))
    for old, new in words.items():
        op.execute(sa.update(rows).where(rows.c[column] == old).values({column: new}))
