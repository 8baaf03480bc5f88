"""Restarts, reboots and corrections of drift are counted apart; when a VM last got on is known.

Revision 0009; before it: 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0009"
down_revision: str | None = "0008"


def upgrade() -> None:
    """Apply."""
    op.add_column("push", sa.Column("reboots", sa.JSON(), server_default="[]", nullable=False))
    op.add_column("push", sa.Column("corrected", sa.Integer(), server_default="0", nullable=False))
    op.add_column("real", sa.Column("moved_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("real", "moved_at")
    op.drop_column("push", "corrected")
    op.drop_column("push", "reboots")
