"""`saltern list`, `show`, `wait` and `console-url`: what is there."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from master_service.cli.commands import adopt
from master_service.cli.commands.history import destroyed_vms
from master_service.cli.common import output, terminal
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.options import (
    VMS,
    Columns,
    Id,
    NoHeader,
    Output,
    TimeoutS,
    client_of,
    vm_path,
    with_query,
)
from master_service.cli.common.output import Format
from master_service.cli.common.progress import follow
from master_service.cli.common.statuses import complete, explanation, word_of

_WORKER_S: Final = 60.0
"""How long the master may wait for a worker: `poll_timeout_s` of its settings, which only the site knows."""


def list_(  # noqa: PLR0913 - the filters
    context: typer.Context,
    *,
    status: Annotated[
        list[str] | None, typer.Option(help="Only VMs of this status; may be repeated.", autocompletion=complete)
    ] = None,
    owner: Annotated[str | None, typer.Option(help="Only VMs of this user.")] = None,
    worker: Annotated[str | None, typer.Option(help="Only on this worker.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name or name=value; may be repeated: all must match.")
    ] = None,
    text: Annotated[str | None, typer.Option("-q", help="Part of the name, or the beginning of the uuid.")] = None,
    unmanaged: Annotated[
        bool, typer.Option("--unmanaged", help="VMs on workers that this master does not manage: adopt them, or not.")
    ] = False,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """List VMs."""
    if unmanaged:
        if status or owner or label or text:
            raise typer.BadParameter("it goes only with --worker", param_hint="--unmanaged")
        adopt.list_unmanaged(context, worker, form, columns, header=not no_header)
        return
    path = with_query(VMS, status=status or None, owner=owner, worker=worker, label=label or None, q=text)
    found = client_of(context).pages(path)
    output.listing(found, form, output.VM_COLUMNS, key="name", chosen=columns, header=not no_header)


def show(context: typer.Context, vm: Id, form: Output = Format.TABLE) -> None:
    """Show one VM in full."""
    client = client_of(context)
    try:
        found = client.get(vm_path(vm))
    except Failure as failure:
        if failure.exit_code is not Exit.NOT_FOUND or not (destroyed := destroyed_vms(client, vm)):
            raise
        at = output.moment(destroyed[0]["changed_at"])
        text = f"There is no VM {vm!r} now. The last one of that name was destroyed at {at} UTC"
        hint = f"`saltern show {destroyed[0]['uuid']}` and `saltern history {vm}` show it."
        raise Failure(f"{text}: {hint}", Exit.NOT_FOUND) from failure
    if form in (Format.TABLE, Format.WIDE):
        found = {**found, "vnc": output.console_hint(found)}
    output.one(found, form, key="name", inner=["spec"])


def wait(
    context: typer.Context,
    vm: Id,
    *,
    status: Annotated[
        list[str] | None, typer.Option("--for", help="Status to wait for; may be repeated.", autocompletion=complete)
    ] = None,
    timeout_s: TimeoutS = 600,
    form: Output = Format.NAME,
) -> None:
    """Wait until a VM has a status (default: running).

    Ends at once if the status will not come: it has failed, was destroyed, or its desired state is another one.
    """
    words = frozenset(word_of(text) for text in status or ["running"])
    reached = follow(client_of(context), vm, timeout_s, words)
    output.one(reached, form, key="name", inner=["spec"])


def console_url(
    context: typer.Context,
    vm: Id,
    *,
    view_only: Annotated[bool, typer.Option(help="Send no keys and no pointer to the guest.")] = False,
    form: Annotated[Format | None, typer.Option("-o", "--output", help="Print the whole answer: json, yaml.")] = None,
) -> None:
    """Print a URL that opens the console of a VM in a browser.

    It works once, and within 30 seconds.
    """
    made = client_of(context).post(vm_path(vm, "console"), {"view_only": view_only}, _WORKER_S)
    if form is None:
        terminal.say(made["page"])
    else:
        output.one(made, form, key="page")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("list", epilog=explanation())(list_)
    app.command()(show)
    app.command(epilog=explanation())(wait)
    app.command("console-url")(console_url)
