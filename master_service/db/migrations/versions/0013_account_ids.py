"""Accounts get an id, because their names may be given again. Mail addresses are verified.

Revision 0013; before it: 0012.
"""

from __future__ import annotations

import hashlib
import secrets
from datetime import UTC, datetime
from typing import Any, Final

import sqlalchemy as sa
from alembic import op

revision: str = "0013"
down_revision: str | None = "0012"

_OWNED: Final = (("vmachine", "owner_id"), ("notice", "owner_id"), ("audit", "actor_id"))
"""Columns with the id of an account, which have an index. `operation` has no query by it alone."""
_OURS: Final = "('api', 'cli', 'web')"
"""Interfaces whose actors are accounts. Elsewhere an actor is a user of Salt or of a worker."""
_KIND: Final = "verify_email"


def upgrade() -> None:
    """Apply. In place: SQLite cannot copy the table `account`, because others refer to it."""
    op.add_column("account", sa.Column("id", sa.String(length=16), server_default="", nullable=False))
    op.add_column("account", sa.Column("email_pending", sa.String(length=254), server_default="", nullable=False))
    op.add_column("account", sa.Column("email_code", sa.String(length=32), server_default="", nullable=False))
    op.add_column("account", sa.Column("email_requested_at", sa.DateTime(timezone=True), nullable=True))
    accounts = sa.table("account", sa.column("id"), sa.column("name"))
    connection = op.get_bind()
    for (name,) in connection.execute(sa.select(accounts.c.name)).all():
        connection.execute(accounts.update().where(accounts.c.name == name).values(id=secrets.token_hex(8)))
    op.create_index("uq_account_id", "account", ["id"], unique=True)

    for table, column in (*_OWNED, ("operation", "actor_id")):
        op.add_column(table, sa.Column(column, sa.String(length=16), server_default="", nullable=False))
    # An account cannot be deleted while it has VMs. Other rows from before its creation are of an earlier one.
    _fill("vmachine", "owner", "owner_id", "vmachine.destroyed_at IS NULL OR vmachine.created_at >= account.created_at")
    _fill("notice", "owner", "owner_id", "notice.at >= account.created_at")
    _fill("audit", "actor", "actor_id", f"audit.interface IN {_OURS} AND audit.at >= account.created_at")
    ours = f"operation.interface IN {_OURS} AND operation.requested_at >= account.created_at"
    _fill("operation", "actor", "actor_id", ours)
    for table, column in _OWNED:
        op.create_index(f"ix_{table}_{column}", table, [column], unique=False)
    # The key of a notice about a worker ends with its owner: the same report must not be a new notice.
    op.execute(
        "UPDATE notice SET key = substr(key, 1, length(key) - length(owner)) || owner_id "
        "WHERE kind = 'unreachable' AND owner <> '' AND owner_id <> ''"
    )

    op.execute('ALTER TABLE idempotency RENAME COLUMN "user" TO account_id')
    op.execute(
        "DELETE FROM idempotency WHERE NOT EXISTS (SELECT 1 FROM account "
        "WHERE account.name = idempotency.account_id AND idempotency.at >= account.created_at)"
    )
    op.execute(
        "UPDATE idempotency SET account_id = (SELECT account.id FROM account "
        "WHERE account.name = idempotency.account_id)"
    )
    _verify_again(connection)


def downgrade() -> None:
    """Take back."""
    op.execute(
        "UPDATE idempotency SET account_id = (SELECT account.name FROM account "
        "WHERE account.id = idempotency.account_id)"
        " WHERE EXISTS (SELECT 1 FROM account WHERE account.id = idempotency.account_id)"
    )
    op.execute('ALTER TABLE idempotency RENAME COLUMN account_id TO "user"')
    op.execute(
        "UPDATE notice SET key = substr(key, 1, length(key) - length(owner_id)) || owner "
        "WHERE kind = 'unreachable' AND owner <> '' AND owner_id <> ''"
    )
    op.execute(f"DELETE FROM notice WHERE kind = '{_KIND}'")  # noqa: S608 - a word of ours
    for table, column in _OWNED:
        op.drop_index(f"ix_{table}_{column}", table_name=table)
    for table, column in (*_OWNED, ("operation", "actor_id")):
        op.drop_column(table, column)
    op.execute("UPDATE account SET email = email_pending WHERE email = ''")
    op.drop_index("uq_account_id", table_name="account")
    for column in ("email_requested_at", "email_code", "email_pending", "id"):
        op.drop_column("account", column)


def _fill(table: str, name: str, column: str, condition: str) -> None:
    """Set the id of the account that has the name, where `condition` says that it is not of an earlier account."""
    op.execute(
        f"UPDATE {table} SET {column} = COALESCE((SELECT account.id FROM account "  # noqa: S608 - names of ours
        f"WHERE account.name = {table}.{name} AND ({condition})), '')"
    )


def _verify_again(connection: sa.Connection) -> None:
    """Mail a code to each address that is in use. Those of administrators stay: what they set counts as verified."""
    time = sa.DateTime(timezone=True)
    account = sa.table(
        "account",
        *map(sa.column, ("id", "name", "role", "email", "email_pending", "email_code")),
        sa.column("disabled", sa.Boolean()),
        sa.column("email_requested_at", time),
    )
    notice = sa.table(
        "notice",
        *map(sa.column, ("id", "key", "kind", "owner", "owner_id", "uuid", "name", "text")),
        sa.column("at", time),
    )
    words = ("notice_id", "user", "channel", "attempts", "problem")
    delivery = sa.table("delivery", *map(sa.column, words), sa.column("next_try_at", time))
    now = datetime.now(UTC)
    used = (account.c.email != "", account.c.role != "admin")
    query = sa.select(account.c.id, account.c.name, account.c.email, account.c.disabled).where(*used)
    for id_, name, email, disabled in connection.execute(query).all():
        pending = {"email": "", "email_pending": email, "email_code": secrets.token_hex(12), "email_requested_at": now}
        connection.execute(account.update().where(account.c.id == id_).values(**pending))
        if disabled:
            continue
        hashed = hashlib.sha256(email.lower().encode()).hexdigest()[:32]
        key = f"{_KIND}:{id_}:{hashed}:{now.isoformat()}"
        made: dict[str, Any] = {
            "key": key,
            "at": now,
            "kind": _KIND,
            "owner": name,
            "owner_id": id_,
            "uuid": "",
            "name": name,
            "text": "A code is mailed to your address. Notices go there after `saltern users contact --code CODE`.",
        }
        connection.execute(notice.insert().values(**made))
        (notice_id,) = connection.execute(sa.select(notice.c.id).where(notice.c.key == key)).one()
        queued = {"notice_id": notice_id, "user": name, "channel": "mail", "attempts": 0, "problem": ""}
        connection.execute(delivery.insert().values(**queued, next_try_at=now))
