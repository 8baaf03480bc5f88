"""Notices on their way to people.

Revision 0008; before it: 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0008"
down_revision: str | None = "0007"


def upgrade() -> None:
    """Apply."""
    # In place, as in 0006: tokens refer to this table.
    op.add_column("account", sa.Column("webhook_secret", sa.String(length=64), server_default="", nullable=False))
    op.create_table(
        "delivery",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("notice_id", sa.Integer(), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("channel", sa.String(length=16), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_try_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("delivered_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("problem", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(["notice_id"], ["notice.id"], name=op.f("fk_delivery_notice_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["user"], ["account.name"], name=op.f("fk_delivery_user"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_delivery")),
    )
    with op.batch_alter_table("delivery", schema=None) as batch_op:
        for column in ("notice_id", "user", "next_try_at"):
            batch_op.create_index(batch_op.f(f"ix_delivery_{column}"), [column], unique=False)
    # Lines of the audit that have come to no end yet are looked for in each report.
    op.create_index(op.f("ix_audit_outcome"), "audit", ["outcome"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_index(op.f("ix_audit_outcome"), table_name="audit")
    op.drop_table("delivery")
    op.drop_column("account", "webhook_secret")
