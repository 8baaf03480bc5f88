"""`saltern users`: accounts, their quotas and where they get notices."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from master_service.cli.commands.notices import follow_test
from master_service.cli.common import output, terminal
from master_service.cli.common.accounts import read_password, user_path
from master_service.cli.common.application import Application
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, TimeoutS, client_of, dry, with_query
from master_service.cli.common.output import Column, Format, field

users = Application(help="List, create, modify and delete users.")
_USERS = (
    field("NAME", "name"),
    field("ROLE", "role"),
    field("VMS", "vms"),
    field("DISABLED", "disabled"),
    field("PASSWORD", "has_password", wide=True),
    Column(title="LOCKED UNTIL", cell=lambda user: output.moment(user["locked_until"]), wide=True),
    Column(title="CREATED", cell=lambda user: output.moment(user["created_at"]), wide=True),
)
_UNLIMITED = "unlimited"
_USUAL = "usual"
Name = Annotated[str, typer.Argument(help="Name of the user; `me` is you.", show_default=False, metavar="USER")]
Role = Annotated[str | None, typer.Option(help="admin, operator, user or viewer.")]
AskPassword = Annotated[bool, typer.Option("--password", help="Ask for a password (or read a line from a pipe).")]
Limit = Annotated[
    str | None, typer.Option(help="The new limit: a number, `unlimited`, or `usual` for the one of the settings.")
]


@users.command("list")
def list_users(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List the users that you may see."""
    found = client_of(context).get("/users")
    output.listing(found, form, _USERS, key="name", chosen=columns, header=not no_header)


@users.command("create")
def create_user(
    context: typer.Context, user: Name, *, role: Role = "user", password: AskPassword = False, dry_run: DryRun = False
) -> None:
    """Create a user. Without a password, the user needs a token that you create."""
    body: dict[str, Any] = {"name": user, "role": role}
    if password:
        body["password"] = read_password(f"Password for {user}", confirm=True)
    _print_user(client_of(context).post(with_query("/users", dry_run=dry(dry_run)), body), dry_run)


@users.command("modify")
def modify_user(
    context: typer.Context, user: Name, *, role: Role = None, password: AskPassword = False, dry_run: DryRun = False
) -> None:
    """Change the role or the password of a user.

    A new password ends their sessions.
    """
    body: dict[str, Any] = {} if role is None else {"role": role}
    if password:
        body["password"] = read_password(f"New password for {user}", confirm=True)
    if not body:
        raise typer.BadParameter("give --role, --password, or both")
    _patch(context, user, body, dry_run)


@users.command("disable")
def disable_user(context: typer.Context, user: Name, *, dry_run: DryRun = False) -> None:
    """Reject a user's password and tokens; their VMs stay."""
    _patch(context, user, {"disabled": True}, dry_run)


@users.command("enable")
def enable_user(context: typer.Context, user: Name, *, dry_run: DryRun = False) -> None:
    """Accept the password and the tokens of a disabled user again."""
    _patch(context, user, {"disabled": False}, dry_run)


@users.command("delete")
def delete_user(context: typer.Context, user: Name, *, dry_run: DryRun = False) -> None:
    """Delete a user and their tokens. Refused while they own VMs."""
    client_of(context).delete(with_query(user_path(user), dry_run=dry(dry_run)))
    terminal.say(f"{'Nothing was changed. The result would be: ' if dry_run else ''}{user} is deleted.")


@users.command("password")
def own_password(context: typer.Context) -> None:
    """Change your own password, which ends all your sessions."""
    old = read_password("Old password")
    body = {"old_password": old, "new_password": read_password("New password", confirm=True)}
    client_of(context).put(f"{user_path('me')}/password", body)
    terminal.say("Your password is changed; log in again.")


@users.command("quota")
def quota(  # noqa: PLR0913 - one option for each amount
    context: typer.Context,
    user: Name = "me",
    *,
    vms: Limit = None,
    cpus: Limit = None,
    mem_mib: Limit = None,
    disk_mib: Limit = None,
    usual: Annotated[bool, typer.Option("--usual", help="Use all limits of the master's settings.")] = False,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
    no_header: NoHeader = False,
) -> None:
    """Show the usage and limits of a user, or change limits.

    Omitted limits stay as they are.
    """
    given = {"vms": vms, "cpus": cpus, "mem_mib": mem_mib, "disk_mib": disk_mib}
    limits = {name: _limit(name, word) for name, word in given.items() if word is not None}
    if usual and limits:
        raise typer.BadParameter("give limits, or --usual, not both")
    client = client_of(context)
    limits = dict.fromkeys(given, _USUAL) if usual else limits
    if limits:
        changed = client.patch(with_query(user_path(user), dry_run=dry(dry_run)), {"quota": limits})
        if dry_run:
            terminal.say(f"Nothing was changed. {changed['name']} would get this quota.")
            return
    found = client.get(f"{user_path(user)}/quota")
    if form not in (Format.TABLE, Format.WIDE):
        output.one({"name": user, **found}, form, key="name")
        return
    rows = [(name, str(used), _unlimited(found["limits"][name])) for name, used in found["used"].items()]
    terminal.table(("AMOUNT", "USED", "LIMIT"), rows, header=not no_header)


@users.command("contact")
def contact(  # noqa: PLR0913 - the options
    context: typer.Context,
    user: Name = "me",
    *,
    email: Annotated[str | None, typer.Option(help="Address for mail; '' for none. A code is mailed to it.")] = None,
    code: Annotated[str | None, typer.Option(help="The code in that mail: use the address from now on.")] = None,
    webhook_url: Annotated[str | None, typer.Option(help="URL for notices; '' for none.")] = None,
    test: Annotated[bool, typer.Option("--test", help="Send a test notice, and wait for its delivery.")] = False,
    timeout_s: TimeoutS = 60,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Show or set where a user gets notices. The secret of a new webhook is shown only once.

    An address that an administrator sets is used at once, without a code.
    """
    client, path = client_of(context), f"{user_path(user)}/contact"
    if code is not None:
        client.post(with_query(f"{path}/verify", dry_run=dry(dry_run)), {"code": code})
    given = {"email": email, "webhook_url": webhook_url}
    body = {name: value for name, value in given.items() if value is not None}
    if body or not test:
        found = client.patch(with_query(path, dry_run=dry(dry_run)), body) if body else client.get(path)
        shown = {name: value for name, value in found.items() if value is not None}
        output.one({"name": user, **shown}, form, key="name")
        if email and not dry_run and found["email_pending"]:
            terminal.warn(
                f"A code is mailed to {found['email_pending']}. Give it with --code: no notice goes there before."
            )
    if body and dry_run:
        terminal.warn("Nothing was changed. This would be the result.")
    if test:
        sent = client.post(with_query(f"{path}/test", dry_run=dry(dry_run)))
        if dry_run:
            terminal.warn("Nothing was sent.")
        else:
            follow_test(client, sent["id"], timeout_s)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(users, name="users")


def _patch(context: typer.Context, user: str, body: dict[str, Any], dry_run: bool) -> None:
    _print_user(client_of(context).patch(with_query(user_path(user), dry_run=dry(dry_run)), body), dry_run)


def _print_user(user: output.JsonObject, dry_run: bool) -> None:
    state = ", disabled" if user["disabled"] else "" if user["has_password"] else ", without a password"
    terminal.say(
        f"{'Nothing was changed. The result would be: ' if dry_run else ''}{user['name']} is {user['role']}{state}."
    )


def _limit(name: str, word: str) -> int | str | None:
    if word == _UNLIMITED:
        return None
    if word == _USUAL:
        return word
    if not (word.isascii() and word.isdecimal()):
        raise typer.BadParameter(f"{name}: {word!r} is neither a number nor `{_UNLIMITED}` nor `{_USUAL}`")
    return int(word)


def _unlimited(limit: int | None) -> str:
    return _UNLIMITED if limit is None else str(limit)
