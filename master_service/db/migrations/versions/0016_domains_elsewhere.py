"""For each VM, the worker that runs a domain with its uuid and does not manage it.

Revision 0016; before it: 0014. Nothing is known of it until the next poll.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0014"


def upgrade() -> None:
    """Apply."""
    op.add_column("observed", sa.Column("elsewhere", sa.String(length=255), nullable=True))


def downgrade() -> None:
    """Take back."""
    op.drop_column("observed", "elsewhere")
