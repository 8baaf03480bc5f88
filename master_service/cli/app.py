"""The command `saltern`: its global options and all commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Annotated, Final

import typer

from master_service import __version__
from master_service.cli import reference
from master_service.cli.commands import (
    adopt,
    apply,
    create,
    doctor,
    download,
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
from master_service.cli.common import terminal
from master_service.cli.common.application import Application, Root
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

SECTIONS: Final[Mapping[str, Sequence[ModuleType]]] = {
    "See virtual machines": (vms, download, history),
    "Create and change virtual machines": (create, apply),
    "Verbs of virtual machines": (verbs,),
    "Workers and images": (workers, adopt, images, doctor),
    "Accounts": (login, users, tokens, notices),
    "This command": (reference,),
}
"""Title of a section of the help -> the modules with its commands."""

app = Application(
    cls=Root,
    name="saltern",
    help="Virtual machines on many hypervisor hosts through Salt.",
    epilog=EXIT_CODES,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
)


def _print_version(given: bool) -> None:
    if given:
        terminal.say(f"saltern {__version__}")
        raise typer.Exit


@app.callback(epilog=EXIT_CODES)
def options(
    context: typer.Context,
    *,
    version: Annotated[  # noqa: ARG001 - its callback acts
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
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


for app.section, parts in SECTIONS.items():
    for part in parts:
        part.register(app)
