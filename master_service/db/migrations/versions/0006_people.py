"""Users with passwords, tokens with scopes and an end, and an audit that says what came of things.

Revision 0006; before it: 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0006"
down_revision: str | None = "0005"

_SCOPES = ["read", "operate", "console", "people"]
"""What a token was good for before there were scopes: everything."""


def upgrade() -> None:
    """Apply."""
    # In place: to copy the table, as a batch does, SQLite would have to drop it, and tokens refer to it.
    op.add_column("account", sa.Column("password", sa.String(length=255), nullable=True))
    op.add_column("account", sa.Column("disabled", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("account", sa.Column("failures", sa.Integer(), server_default="0", nullable=False))
    op.add_column("account", sa.Column("locked_until", sa.DateTime(timezone=True), nullable=True))
    op.add_column("account", sa.Column("quota", sa.JSON(), server_default="{}", nullable=False))
    op.add_column("account", sa.Column("email", sa.String(length=254), server_default="", nullable=False))
    op.add_column("account", sa.Column("webhook_url", sa.String(length=2048), server_default="", nullable=False))

    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.add_column(sa.Column("kind", sa.String(length=16), server_default="vm", nullable=False))
        batch_op.add_column(sa.Column("outcome", sa.String(length=16), server_default="done", nullable=False))
        batch_op.add_column(sa.Column("detail", sa.String(), server_default="", nullable=False))
        batch_op.add_column(sa.Column("jid", sa.String(length=32), server_default="", nullable=False))
        batch_op.add_column(sa.Column("request_id", sa.String(length=128), server_default="", nullable=False))
        batch_op.add_column(sa.Column("address", sa.String(length=45), server_default="", nullable=False))
        batch_op.alter_column(
            "verb", existing_type=sa.String(length=16), type_=sa.String(length=32), existing_nullable=False
        )
        batch_op.alter_column(
            "name", existing_type=sa.String(length=63), type_=sa.String(length=255), existing_nullable=False
        )
        batch_op.create_index(batch_op.f("ix_audit_who"), ["who"], unique=False)

    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.add_column(sa.Column("id", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("kind", sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column("scopes", sa.JSON(), nullable=True))
        batch_op.add_column(sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True))

    # The beginning of a digest of 256 random bits names a token and helps nobody to find it.
    words = [sa.column(name, sa.String()) for name in ("id", "kind", "label", "sha256")]
    token = sa.table("token", *words, sa.column("scopes", sa.JSON()))
    settings = token.c.label == "settings"
    op.execute(
        token.update().values(
            id=sa.func.substr(token.c.sha256, 1, 16),
            kind=sa.case((settings, "settings"), else_="token"),
            scopes=_SCOPES,
        )
    )
    with op.batch_alter_table("token", schema=None) as batch_op:
        for name, kind in (("id", sa.String(length=16)), ("kind", sa.String(length=16)), ("scopes", sa.JSON())):
            batch_op.alter_column(name, existing_type=kind, nullable=False)
        batch_op.create_unique_constraint(batch_op.f("uq_token_id"), ["id"])


def downgrade() -> None:
    """Take back."""
    with op.batch_alter_table("token", schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f("uq_token_id"), type_="unique")
        batch_op.drop_column("revoked_at")
        batch_op.drop_column("last_used_at")
        batch_op.drop_column("expires_at")
        batch_op.drop_column("scopes")
        batch_op.drop_column("kind")
        batch_op.drop_column("id")

    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_who"))
        batch_op.alter_column(
            "name", existing_type=sa.String(length=255), type_=sa.String(length=63), existing_nullable=False
        )
        batch_op.alter_column(
            "verb", existing_type=sa.String(length=32), type_=sa.String(length=16), existing_nullable=False
        )
        batch_op.drop_column("address")
        batch_op.drop_column("request_id")
        batch_op.drop_column("jid")
        batch_op.drop_column("detail")
        batch_op.drop_column("outcome")
        batch_op.drop_column("kind")

    op.drop_column("account", "webhook_url")
    op.drop_column("account", "email")
    op.drop_column("account", "quota")
    op.drop_column("account", "locked_until")
    op.drop_column("account", "failures")
    op.drop_column("account", "disabled")
    op.drop_column("account", "password")
