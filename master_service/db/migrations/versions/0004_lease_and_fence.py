"""Several masters, and workers that are fenced.

Revision 0004; before it: 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0004"
down_revision: str | None = "0003"


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "lease",
        sa.Column("name", sa.String(length=16), nullable=False),
        sa.Column("holder", sa.String(length=255), nullable=False),
        sa.Column("epoch", sa.Integer(), nullable=False),
        sa.Column("beat", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_lease")),
    )
    with op.batch_alter_table("worker", schema=None) as batch_op:
        batch_op.add_column(sa.Column("fenced_at", sa.DateTime(timezone=True), nullable=True))
    with op.batch_alter_table("push", schema=None) as batch_op:
        batch_op.add_column(sa.Column("tried", sa.JSON(), nullable=False, server_default="[]"))
    with op.batch_alter_table("push", schema=None) as batch_op:
        batch_op.alter_column("tried", server_default=None)


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("push", schema=None) as batch_op:
        batch_op.drop_column("tried")
    with op.batch_alter_table("worker", schema=None) as batch_op:
        batch_op.drop_column("fenced_at")
    op.drop_table("lease")
