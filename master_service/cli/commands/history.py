"""`saltern history`, `audit` and `events`: what happened, and what happens now."""

from __future__ import annotations

import json
import time
from typing import Annotated, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.options import Columns, Id, NoHeader, Output, client_of, vm_path, with_query
from master_service.cli.common.output import Column, Format, field
from master_service.cli.common.values import moment

_HISTORY: Final = (
    Column(title="AT", cell=lambda entry: entry["at"].replace("T", " ").partition(".")[0]),
    field("FACT", "fact"),
    field("ACTOR", "actor"),
    field("BEFORE", "before"),
    field("AFTER", "after"),
    field("MESSAGE", "message"),
    field("GENERATION", "generation", wide=True),
)
_AUDIT: Final = (
    Column(title="AT", cell=lambda entry: output.moment(entry["at"])),
    field("ACTOR", "actor"),
    field("INTERFACE", "interface", wide=True),
    field("VERB", "verb"),
    field("KIND", "kind", wide=True),
    field("NAME", "name"),
    field("OUTCOME", "outcome"),
    field("DETAIL", "detail"),
    field("ADDRESS", "address", wide=True),
    field("JOB", "jid", wide=True),
)
_RECONNECT_S: Final = 2.0


def history(  # noqa: PLR0913 - how a list is printed
    context: typer.Context,
    vm: Id,
    *,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many entries at most.")] = 50,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """Show the history of a VM.

    It has the changes of its desired state, sent commands and reports. The newest is last.
    """
    found = client_of(context).get(vm_path(vm, "history", limit=limit))
    output.listing(found[::-1], form, _HISTORY, key="id", chosen=columns, header=not no_header)


def events(
    context: typer.Context,
    vm: Annotated[str | None, typer.Argument(help="Only of this VM (name or uuid).", metavar="VM")] = None,
    *,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Stop after this many.")] = None,
    form: Output = Format.TABLE,
) -> None:
    """Show changes of VMs as they happen, until Ctrl+C. Reconnects by itself."""
    client, last, shown = client_of(context), None, 0
    while True:
        try:
            for last_id, kind, data in client.events(last):
                last = last_id or last
                if kind != "vmachine" or (vm and vm not in (data["name"], data["uuid"])):
                    continue
                _event(data, form)
                shown += 1
                if count is not None and shown >= count:
                    return
        except Failure as failure:
            if failure.exit_code is not Exit.FAILED and failure.exit_code is not Exit.TIMEOUT:
                raise
            if last is None and not shown:
                raise
            terminal.warn(f"{failure} Trying again.")
        time.sleep(_RECONNECT_S)


def _event(vm: output.JsonObject, form: Format) -> None:
    match form:
        case Format.JSON:
            terminal.write(json.dumps(vm) + "\n")  # one line each, for programs
        case Format.YAML:
            terminal.write("---\n" + output.yaml_of(vm))
        case Format.NAME:
            terminal.say(vm["name"])
        case Format.TABLE | Format.WIDE:
            reason = vm["reason"] or vm["message"]
            terminal.say(f"{time.strftime('%H:%M:%S')} {vm['name']} {vm['status']} {vm['worker'] or '-'} {reason}")


def audit(  # noqa: PLR0913 - the filters
    context: typer.Context,
    *,
    vm: Annotated[str | None, typer.Option(help="Only about this VM (name or uuid).", metavar="VM")] = None,
    actor: Annotated[str | None, typer.Option(help="Only acts of this user.", metavar="USER")] = None,
    verb: Annotated[str | None, typer.Option(help="Only this verb, such as destroy.")] = None,
    outcome: Annotated[
        str | None, typer.Option(help="Only this outcome, such as done, failed, refused or denied.")
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Only since then: 2h, 3d, or a time such as 2026-01-31T08:00Z.", parser=moment)
    ] = None,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many entries at most.")] = 50,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """Show who did what, and with which outcome.

    Users and viewers see only their own acts. The newest is last.
    """
    named = {"vm": vm, "actor": actor, "verb": verb and verb.replace("-", "_"), "outcome": outcome}
    found = client_of(context).get(with_query("/audit", **named, since=since, limit=limit))
    output.listing(found[::-1], form, _AUDIT, key="id", chosen=columns, header=not no_header)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(history)
    app.command()(events)
    app.command()(audit)
