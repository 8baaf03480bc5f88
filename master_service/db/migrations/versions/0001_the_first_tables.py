"""The first tables.

Revision 0001; before it: none.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision: str = "0001"
down_revision: str | None = None


def upgrade() -> None:
    """Apply."""
    op.create_table(
        "account",
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("role", sa.String(length=16), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_account")),
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("who", sa.String(length=63), nullable=False),
        sa.Column("door", sa.String(length=16), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=False),
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit")),
    )
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_audit_uuid"), ["uuid"], unique=False)

    op.create_table(
        "vmachine",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("name", sa.String(length=63), nullable=False),
        sa.Column("owner", sa.String(length=63), nullable=False),
        sa.Column("spec", sa.JSON(), nullable=False),
        sa.Column("wanted", sa.String(length=16), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("pin", sa.String(length=255), nullable=True),
        sa.Column("worker", sa.String(length=255), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("destroyed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_vmachine")),
    )
    with op.batch_alter_table("vmachine", schema=None) as batch_op:
        batch_op.create_index(batch_op.f("ix_vmachine_owner"), ["owner"], unique=False)
        batch_op.create_index(batch_op.f("ix_vmachine_worker"), ["worker"], unique=False)
        batch_op.create_index(
            "uq_vmachine_live_name",
            ["name"],
            unique=True,
            sqlite_where=sa.text("destroyed_at IS NULL"),
            postgresql_where=sa.text("destroyed_at IS NULL"),
        )

    op.create_table(
        "worker",
        sa.Column("id", sa.String(length=255), nullable=False),
        sa.Column("capacity", sa.JSON(), nullable=True),
        sa.Column("version", sa.String(length=63), nullable=False),
        sa.Column("seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("unreachable_since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("draining", sa.Boolean(), nullable=False),
        sa.Column("foreign", sa.JSON(), nullable=False),
        sa.Column("strangers", sa.JSON(), nullable=False),
        sa.Column("problem", sa.String(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_worker")),
    )
    op.create_table(
        "push",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("asked", sa.Integer(), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("verb", sa.String(length=16), nullable=True),
        sa.Column("jid", sa.String(length=32), nullable=True),
        sa.Column("sent_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("next_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("accepted", sa.Integer(), nullable=False),
        sa.Column("problem_code", sa.String(length=64), nullable=True),
        sa.Column("problem_message", sa.String(), nullable=True),
        sa.Column("redone", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["uuid"], ["vmachine.uuid"], name=op.f("fk_push_uuid"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_push")),
    )
    op.create_table(
        "real",
        sa.Column("uuid", sa.String(length=36), nullable=False),
        sa.Column("status", sa.JSON(), nullable=True),
        sa.Column("real_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("since", sa.DateTime(timezone=True), nullable=True),
        sa.Column("misses", sa.Integer(), nullable=False),
        sa.Column("tombstone", sa.Integer(), nullable=True),
        sa.ForeignKeyConstraint(["uuid"], ["vmachine.uuid"], name=op.f("fk_real_uuid"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("uuid", name=op.f("pk_real")),
    )
    op.create_table(
        "token",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("user", sa.String(length=63), nullable=False),
        sa.Column("label", sa.String(length=63), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["user"], ["account.name"], name=op.f("fk_token_user")),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_token")),
    )


def downgrade() -> None:
    """Take back."""
    op.drop_table("token")
    op.drop_table("real")
    op.drop_table("push")
    op.drop_table("worker")
    with op.batch_alter_table("vmachine", schema=None) as batch_op:
        batch_op.drop_index(
            "uq_vmachine_live_name",
            sqlite_where=sa.text("destroyed_at IS NULL"),
            postgresql_where=sa.text("destroyed_at IS NULL"),
        )
        batch_op.drop_index(batch_op.f("ix_vmachine_worker"))
        batch_op.drop_index(batch_op.f("ix_vmachine_owner"))

    op.drop_table("vmachine")
    with op.batch_alter_table("audit", schema=None) as batch_op:
        batch_op.drop_index(batch_op.f("ix_audit_uuid"))

    op.drop_table("audit")
    op.drop_table("account")
