"""A table of operations: their outcomes change, entries of the audit no longer do.

Revision 0011; before it: 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0011"
down_revision: str | None = "0010"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "operation",
        sa.Column("id", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("verb", sa.String(length=32), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("actor", sa.String(length=63), nullable=False),
        sa.Column("interface", sa.String(length=16), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("outcome", sa.String(length=16), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("jid", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["id"], ["audit.id"], name=op.f("fk_operation_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_operation")),
    )
    op.create_index("ix_operation_uuid", "operation", ["uuid"], unique=False)
    op.create_index("ix_operation_outcome", "operation", ["outcome"], unique=False)
    op.execute(
        "INSERT INTO operation (id, uuid, verb, generation, actor, interface, requested_at, outcome, detail, jid) "
        "SELECT id, uuid, verb, generation, actor, interface, at, outcome, detail, jid FROM audit "
        "WHERE kind = 'vm' AND outcome <> 'denied'"
    )


def downgrade() -> None:
    """Take back: entries of the audit get the outcomes of their operations."""
    for column in ("actor", "outcome", "detail", "jid"):
        op.execute(
            f"UPDATE audit SET {column} = (SELECT operation.{column} FROM operation "  # noqa: S608 - names of ours
            "WHERE operation.id = audit.id) WHERE id IN (SELECT id FROM operation)"
        )
    op.drop_table("operation")
