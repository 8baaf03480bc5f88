"""The last save of each VM, from which it starts, and the command that asked for its desired status.

Revision 0016; before it: 0015. The last saves are those that the last report of a halted VM names.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op

revision: str = "0016"
down_revision: str | None = "0015"

_OBSERVED = sa.table(
    "observed", sa.column("uuid", sa.String), sa.column("status", sa.JSON), sa.column("saves", sa.JSON)
)


def upgrade() -> None:
    """Apply."""
    op.add_column("vmachine", sa.Column("status_generation", sa.Integer(), server_default="0", nullable=False))
    op.add_column("vmachine", sa.Column("from_image", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("observed", sa.Column("saves", sa.JSON(), server_default="{}", nullable=False))
    op.execute("UPDATE vmachine SET status_generation = user_generation")
    connection = op.get_bind()
    for uuid, status in connection.execute(sa.select(_OBSERVED.c.uuid, _OBSERVED.c.status)).all():
        if saves := _saves(status):
            connection.execute(sa.update(_OBSERVED).where(_OBSERVED.c.uuid == uuid).values(saves=saves))


def downgrade() -> None:
    """Take back."""
    op.drop_column("observed", "saves")
    op.drop_column("vmachine", "from_image")
    op.drop_column("vmachine", "status_generation")


def _saves(status: Mapping[str, Any] | None) -> dict[str, dict[str, str]]:
    if not status or status.get("status") != "halted":
        return {}
    return {
        disk: {"uri": report["saved_to"], "sha256": report["sha256"]}
        for disk, report in (status.get("disks") or {}).items()
        if report.get("saved_to") and report.get("sha256")
    }
