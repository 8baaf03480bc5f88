"""For each entry of the history, its cause, and the status of the VM right after it.

Revision 0019; before it: 0018. Earlier entries have neither.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0019"
down_revision: str | None = "0018"


def upgrade() -> None:
    """Apply."""
    op.add_column("history", sa.Column("cause", sa.String(length=500), server_default="", nullable=False))
    op.add_column("history", sa.Column("status", sa.String(length=16), server_default="", nullable=False))


def downgrade() -> None:
    """Take back."""
    op.drop_column("history", "status")
    op.drop_column("history", "cause")
