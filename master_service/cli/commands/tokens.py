"""`saltern tokens`: the access of programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.accounts import Lifetime, keep_token, user_path
from master_service.cli.common.application import Application
from master_service.cli.common.client import Failure
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, client_of, dry, with_query
from master_service.cli.common.output import Column, Format, field

tokens = Application(help="List, create and revoke tokens.")
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
Scope = Annotated[
    list[str] | None, typer.Option("--scope", help="read, operate, console or accounts; may be repeated. Default: all.")
]


@tokens.command("list")
def list_tokens(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List the tokens that you may see, without their secrets."""
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
    made = client_of(context).post(f"{user_path(user)}/tokens", body)
    if file is None:
        terminal.say(made["token"])
    else:
        keep_token(file, made["token"])
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
    app.add_typer(tokens, name="tokens")


def _scopes(scopes: list[str]) -> str:
    return "all" if len(scopes) == _ALL_SCOPES else ",".join(scopes)
