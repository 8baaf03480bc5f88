"""`saltern login`, `logout`, `users` and `tokens`: accounts and their access."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from master_service.cli import output, terminal
from master_service.cli.client import Client, Failure
from master_service.cli.credentials import session_file
from master_service.cli.options import Columns, DryRun, NoHeader, Options, Output, client_of, dry, with_query
from master_service.cli.output import Column, Format, field

users = typer.Typer(rich_markup_mode=None)
tokens = typer.Typer(rich_markup_mode=None)
_USERS = (
    field("NAME", "name"),
    field("ROLE", "role"),
    field("VMS", "vms"),
    field("DISABLED", "disabled"),
    field("PASSWORD", "has_password", wide=True),
    Column(title="LOCKED UNTIL", cell=lambda user: output.moment(user["locked_until"]), wide=True),
    Column(title="CREATED", cell=lambda user: output.moment(user["created_at"]), wide=True),
)
_TOKENS = (
    field("ID", "id"),
    field("USER", "user"),
    field("KIND", "kind"),
    field("LABEL", "label"),
    Column(title="SCOPES", cell=lambda token: _scopes(token["scopes"])),
    Column(title="EXPIRES", cell=lambda token: output.moment(token["expires_at"])),
    Column(title="LAST USED", cell=lambda token: output.moment(token["last_used_at"]), wide=True),
    Column(title="REVOKED", cell=lambda token: output.moment(token["revoked_at"]), wide=True),
)
_ALL_SCOPES = 4
_UNLIMITED = "unlimited"
_USUAL = "usual"
Name = Annotated[str, typer.Argument(help="Name of the user; `me` is you.", show_default=False, metavar="USER")]
Role = Annotated[str | None, typer.Option(help="admin, operator, user or viewer.")]
AskPassword = Annotated[bool, typer.Option("--password", help="Ask for a password (or read a line from a pipe).")]
Scope = Annotated[
    list[str] | None, typer.Option("--scope", help="read, operate, console or accounts; may be repeated. Default: all.")
]
Limit = Annotated[
    str | None, typer.Option(help="The new limit: a number, `unlimited`, or `usual` for the one of the settings.")
]
Lifetime = Annotated[float | None, typer.Option("--expires-in", min=1, help="Lifetime of the token in seconds.")]


def login(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="Your name.", show_default=False, metavar="USER")],
    *,
    expires_in_s: Lifetime = None,
) -> None:
    """Log in with your password, and store the session's token for the other commands."""
    options: Options = context.obj
    body: dict[str, Any] = {"user": user, "password": _password("Password"), "label": "saltern login"}
    if expires_in_s is not None:
        body["expires_in_s"] = expires_in_s
    made = Client(options.url, "").post("/tokens", body)
    path = session_file(options.url)
    _keep(path, made["token"])
    terminal.say(f"You are {user} until {output.moment(made['expires_at'])} UTC; the token is in {path}.")


def logout(context: typer.Context) -> None:
    """End the session of `saltern login`, here and at the master."""
    options: Options = context.obj
    path = session_file(options.url)
    try:
        token = path.read_text().strip()
    except FileNotFoundError as err:
        raise Failure(f"You are not logged in at {options.url}.") from err
    try:
        Client(options.url, token).delete("/tokens/current")
    finally:
        path.unlink(missing_ok=True)
    terminal.say("You are logged out.")


@users.callback(invoke_without_command=True)
def list_users(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List the users that you may see; create, modify and delete them."""
    if context.invoked_subcommand is None:
        found = client_of(context).get("/users")
        output.listing(found, form, _USERS, key="name", chosen=columns, header=not no_header)


@users.command("create")
def create_user(
    context: typer.Context, user: Name, *, role: Role = "user", password: AskPassword = False, dry_run: DryRun = False
) -> None:
    """Create a user. Without a password, the user needs a token that you create."""
    body: dict[str, Any] = {"name": user, "role": role}
    if password:
        body["password"] = _password(f"Password for {user}", confirm=True)
    _print_user(client_of(context).post(with_query("/users", dry_run=dry(dry_run)), body), dry_run)


@users.command("modify")
def modify_user(
    context: typer.Context, user: Name, *, role: Role = None, password: AskPassword = False, dry_run: DryRun = False
) -> None:
    """Change the role or the password of a user, which ends their sessions."""
    body: dict[str, Any] = {} if role is None else {"role": role}
    if password:
        body["password"] = _password(f"New password for {user}", confirm=True)
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
    client_of(context).delete(with_query(_user(user), dry_run=dry(dry_run)))
    terminal.say(f"{'Nothing was changed. The result would be: ' if dry_run else ''}{user} is deleted.")


@users.command("password")
def own_password(context: typer.Context) -> None:
    """Change your own password, which ends all your sessions."""
    old = _password("Old password")
    body = {"old_password": old, "new_password": _password("New password", confirm=True)}
    client_of(context).put(f"{_user('me')}/password", body)
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
    """Show the usage and limits of a user, or change limits; omitted ones stay as they are."""
    given = {"vms": vms, "cpus": cpus, "mem_mib": mem_mib, "disk_mib": disk_mib}
    limits = {name: _limit(name, word) for name, word in given.items() if word is not None}
    if usual and limits:
        raise typer.BadParameter("give limits, or --usual, not both")
    client = client_of(context)
    limits = dict.fromkeys(given, _USUAL) if usual else limits
    if limits:
        changed = client.patch(with_query(_user(user), dry_run=dry(dry_run)), {"quota": limits})
        if dry_run:
            terminal.say(f"Nothing was changed. {changed['name']} would get this quota.")
            return
    found = client.get(f"{_user(user)}/quota")
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
    test: Annotated[bool, typer.Option("--test", help="Send a test notice.")] = False,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Show or set where a user gets notices. The secret of a new webhook is shown only once.

    An address that an administrator sets is used at once, without a code.
    """
    client, path = client_of(context), f"{_user(user)}/contact"
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
        client.post(with_query(f"{path}/test", dry_run=dry(dry_run)))
        done = "Nothing was sent." if dry_run else "A test notice is being sent; `saltern notices` shows the result."
        terminal.warn(done)


@tokens.callback(invoke_without_command=True)
def list_tokens(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List the tokens that you may see, without their secrets; create and revoke them."""
    if context.invoked_subcommand is None:
        found = client_of(context).get("/tokens")
        output.listing(found, form, _TOKENS, key="id", chosen=columns, header=not no_header)


@tokens.command("create")
def create_token(  # noqa: PLR0913 - the options
    context: typer.Context,
    label: Annotated[str, typer.Argument(help="Purpose of the token.", show_default=False, metavar="LABEL")],
    *,
    user: Annotated[str, typer.Option(help="Its user.")] = "me",
    scope: Scope = None,
    expires_in_s: Lifetime = None,
    file: Annotated[
        Path | None, typer.Option(help="Write it to this new file (mode 0600) instead of the terminal.")
    ] = None,
) -> None:
    """Create a token for a program, and print it. It is shown only once."""
    body: dict[str, Any] = {"label": label}
    body |= {"scopes": scope} if scope else {}
    body |= {"expires_in_s": expires_in_s} if expires_in_s is not None else {}
    if file is not None and file.exists():
        raise Failure(f"{file} exists already. Give the name of a new file. No token was created.")
    made = client_of(context).post(f"{_user(user)}/tokens", body)
    if file is None:
        terminal.say(made["token"])
    else:
        _keep(file, made["token"])
    scopes, until = _scopes(made["scopes"]), output.moment(made["expires_at"])
    terminal.warn(f"Token {made['id']} of {made['user']}: {scopes}, until {until} UTC.")


@tokens.command("revoke")
def revoke(
    context: typer.Context,
    token_id: Annotated[str, typer.Argument(help="Id of the token; `current` is yours.", metavar="ID")],
    *,
    dry_run: DryRun = False,
) -> None:
    """Reject a token from now on."""
    client_of(context).delete(with_query(f"/tokens/{quote(token_id, safe='')}", dry_run=dry(dry_run)))
    terminal.say(f"{'Nothing was changed. The result would be: ' if dry_run else ''}{token_id} is revoked.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(login)
    app.command()(logout)
    app.add_typer(users, name="users")
    app.add_typer(tokens, name="tokens")


def _patch(context: typer.Context, user: str, body: dict[str, Any], dry_run: bool) -> None:
    _print_user(client_of(context).patch(with_query(_user(user), dry_run=dry(dry_run)), body), dry_run)


def _print_user(user: output.JsonObject, dry_run: bool) -> None:
    state = ", disabled" if user["disabled"] else "" if user["has_password"] else ", without a password"
    terminal.say(
        f"{'Nothing was changed. The result would be: ' if dry_run else ''}{user['name']} is {user['role']}{state}."
    )


def _user(name: str) -> str:
    return f"/users/{quote(name, safe='')}"


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


def _scopes(scopes: list[str]) -> str:
    return "all" if len(scopes) == _ALL_SCOPES else ",".join(scopes)


def _password(prompt: str, *, confirm: bool = False) -> str:
    """Read a password from the terminal or from stdin. Every user of the machine could read an argument."""
    if sys.stdin.isatty():
        return terminal.ask_secret(prompt, confirm=confirm)
    return sys.stdin.readline().rstrip("\n")


def _keep(path: Path, token: str) -> None:
    """Write a token atomically, readable only by its owner."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
        partial.replace(path)
    except OSError as err:
        raise Failure(f"Cannot write the token to {path}: {err.strerror}.") from err
