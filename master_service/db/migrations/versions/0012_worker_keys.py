"""Workers have keys: one that an administrator enrolled, and one that waits for it.

Revision 0012; before it: 0011. Workers of before have no key, so they wait to be enrolled.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0012"
down_revision: str | None = "0011"


def upgrade() -> None:
    """Apply."""
    with op.batch_alter_table("worker") as table:
        table.add_column(sa.Column("key", sa.String(length=64), server_default="", nullable=False))
        table.add_column(sa.Column("claimed_key", sa.String(length=64), server_default="", nullable=False))
        table.add_column(sa.Column("api_url", sa.String(length=2048), server_default="", nullable=False))
    op.execute("UPDATE worker SET unreachable_since = CURRENT_TIMESTAMP WHERE unreachable_since IS NULL")


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("worker") as table:
        for column in ("key", "claimed_key", "api_url"):
            table.drop_column(column)
