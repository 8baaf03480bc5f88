"""For each VM, whether it is protected from being destroyed.

Revision 0018; before it: 0017. No earlier VM is protected.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0018"
down_revision: str | None = "0017"


def upgrade() -> None:
    """Apply."""
    op.add_column("vmachine", sa.Column("protected", sa.Boolean(), server_default=sa.false(), nullable=False))


def downgrade() -> None:
    """Take back."""
    op.drop_column("vmachine", "protected")
