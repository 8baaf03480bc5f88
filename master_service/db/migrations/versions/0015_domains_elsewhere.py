"""For each VM, the worker that runs a domain with its uuid and does not manage it. Numbers of workers have two forms.

Revision 0015; before it: 0014. Nothing is known of such domains until the next poll. Sentences about the room on a
worker become texts with two forms (`core.audience`): who may not see the workers reads none of their numbers.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa
from alembic import op

revision: str = "0015"
down_revision: str | None = "0014"

_BEGIN: Final = "\ue000no worker has room for it\ue001"
_END: Final = "\ue002"
_NUMBERS: Final = ("%MiB are free%", "%overcommit are free%", "no worker fits:%")
_TEXTS: Final = (("dispatch", "problem_message", 4000), ("history", "message", 450), ("operation", "detail", 4000))
"""Table, column, and the characters that are kept: the new text must fit into the column."""


def upgrade() -> None:
    """Apply."""
    op.add_column("observed", sa.Column("elsewhere", sa.String(length=255), nullable=True))
    for table, column, most in _TEXTS:
        text: sa.ColumnClause[str] = sa.column(column, sa.String)
        marked = sa.literal(_BEGIN) + sa.func.substr(text, 1, most) + sa.literal(_END)
        numbers = sa.or_(*(text.like(pattern) for pattern in _NUMBERS))
        op.execute(sa.update(sa.table(table, text)).where(numbers).values({column: marked}))


def downgrade() -> None:
    """Take back."""
    for table, column, _most in _TEXTS:
        text: sa.ColumnClause[str] = sa.column(column, sa.String)
        bare = sa.func.replace(sa.func.replace(text, _BEGIN, ""), _END, "")
        op.execute(sa.update(sa.table(table, text)).where(text.like(f"{_BEGIN}%")).values({column: bare}))
    op.drop_column("observed", "elsewhere")
