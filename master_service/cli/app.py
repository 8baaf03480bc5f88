"""The command `saltern`: its global options and all commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from master_service.cli.commands import (
    apply,
    create,
    doctor,
    history,
    images,
    login,
    notices,
    tokens,
    users,
    verbs,
    vms,
    workers,
)
from master_service.cli.common.options import URL, Options

EXIT_CODES: Final = """\b
Exit codes:
  0  ok
  1  failed
  2  usage: the command line or a parameter is invalid
  3  not found
  4  timeout: it continues, but had no effect in time
  5  denied: no token, or one without this permission
"""

app = typer.Typer(
    name="saltern",
    help="Virtual machines on many hypervisor hosts through Salt.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)


@app.callback(epilog=EXIT_CODES)
def options(
    context: typer.Context,
    *,
    url: Annotated[str, typer.Option(envvar="SALTERN_URL", help="URL of the master.")] = URL,
    token_file: Annotated[
        Path | None,
        typer.Option(envvar="SALTERN_TOKEN_FILE", help="File with a token, for any --url.", show_default=False),
    ] = None,
    token: Annotated[
        str | None,
        typer.Option(envvar="SALTERN_TOKEN", help="A token, for any --url. Better in a file.", show_default=False),
    ] = None,
) -> None:
    """Virtual machines on many hypervisor hosts through Salt."""
    context.obj = Options(url=url, token=token, token_file=token_file)


for part in (vms, create, verbs, workers, history, notices, doctor, apply, login, users, tokens, images):
    part.register(app)
