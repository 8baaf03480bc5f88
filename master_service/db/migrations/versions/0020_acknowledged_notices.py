"""For each notice, when it was acknowledged, and by which account.

Revision 0020; before it: 0015. No earlier notice was acknowledged.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0020"
down_revision: str | None = "0015"


def upgrade() -> None:
    """Apply."""
    op.add_column("notice", sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("notice", sa.Column("acknowledged_by", sa.String(length=63), server_default="", nullable=False))


def downgrade() -> None:
    """Take back."""
    op.drop_column("notice", "acknowledged_by")
    op.drop_column("notice", "acknowledged_at")
