"""`saltern login`, `logout`, `whoami` and `quota`: the session of a person."""

from __future__ import annotations

from typing import Annotated, Any, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.accounts import Lifetime, keep_token, read_password, user_path
from master_service.cli.common.client import Client, Failure
from master_service.cli.common.credentials import session_file
from master_service.cli.common.options import NoHeader, Options, Output, client_of
from master_service.cli.common.output import Format


def login(
    context: typer.Context,
    user: Annotated[str, typer.Argument(help="Your name.", show_default=False, metavar="USER")],
    *,
    expires_in_s: Lifetime = None,
) -> None:
    """Log in with your password.

    Stores the session's token for the other commands.
    """
    options: Options = context.obj
    body: dict[str, Any] = {"user": user, "password": read_password("Password"), "label": "saltern login"}
    if expires_in_s is not None:
        body["expires_in_s"] = expires_in_s
    made = Client(options.url, "").post("/tokens", body)
    path = session_file(options.url)
    keep_token(path, made["token"])
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


def whoami(context: typer.Context, form: Output = Format.TABLE) -> None:
    """Show your name and role at the master."""
    options: Options = context.obj
    user = client_of(context).get(user_path("me"))
    if form in (Format.TABLE, Format.WIDE):
        terminal.say(f"{user['name']} is {user['role']} at {options.url}.")
    else:
        output.one(user, form, key="name")


_AMOUNTS: Final = {"vms": "VMs", "cpus": "processors", "mem_mib": "memory (MiB)", "disk_mib": "disk (MiB)"}


def quota(context: typer.Context, form: Output = Format.TABLE, no_header: NoHeader = False) -> None:
    """Show what you use and how much you may use.

    Your VMs count until they are destroyed, also while they are off.
    """
    found = client_of(context).get(f"{user_path('me')}/quota")
    if form not in (Format.TABLE, Format.WIDE):
        output.one(found, form, key="used")
        return
    rows = []
    for name, used in found["used"].items():
        limit = found["limits"][name]
        ends = ("unlimited", "-") if limit is None else (str(limit), str(max(0, limit - used)))
        rows.append((_AMOUNTS.get(name, name), str(used), *ends))
    terminal.table(("AMOUNT", "USED", "LIMIT", "LEFT"), rows, header=not no_header)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(quota)
    app.command()(login)
    app.command()(logout)
    app.command()(whoami)
