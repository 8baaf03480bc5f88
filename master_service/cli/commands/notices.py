"""`saltern notices`: incidents, and whether their notices were delivered."""

from __future__ import annotations

from typing import Final

import typer

from master_service.cli.common import output
from master_service.cli.common.options import Columns, NoHeader, Output, client_of
from master_service.cli.common.output import Column, Format, field

_NOTICES: Final = (
    field("ID", "id", wide=True),
    Column(title="AT", cell=lambda notice: notice["at"].replace("T", " ").partition(".")[0]),
    field("KIND", "kind"),
    field("FOR", "owner"),
    field("NAME", "name"),
    Column(title="SENT", cell=lambda notice: ", ".join(f"{d['channel']} {d['state']}" for d in notice["deliveries"])),
    field("TEXT", "text"),
)


def notices(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List incidents and whether their notices were delivered. The newest is first."""
    output.listing(client_of(context).get("/notices"), form, _NOTICES, key="id", chosen=columns, header=not no_header)


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(notices)
