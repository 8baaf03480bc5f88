"""For each notice, when it was acknowledged, and by which account.

Revision 0017; before it: 0016. No earlier notice was acknowledged.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0017"
down_revision: str | None = "0016"


def upgrade() -> None:
    """Apply."""
    op.add_column("notice", sa.Column("acknowledged_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("notice", sa.Column("acknowledged_by", sa.String(length=63), server_default="", nullable=False))


def downgrade() -> None:
    """Take back."""
    op.drop_column("notice", "acknowledged_by")
    op.drop_column("notice", "acknowledged_at")
