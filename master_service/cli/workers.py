"""`saltern workers`, `plan`, `history`, `events`, `notices` and `doctor`: the state of the installation."""

from __future__ import annotations

import json
import sys
import time
from typing import Annotated, Final
from urllib.parse import quote

import typer

from master_service import __version__
from master_service.cli import output, terminal
from master_service.cli.client import Exit, Failure
from master_service.cli.doctor import examine
from master_service.cli.options import (
    Columns,
    DryRun,
    Id,
    NoHeader,
    Output,
    WorkerId,
    client_of,
    dry,
    vm_path,
    with_query,
)
from master_service.cli.output import Column, Format, field

_HISTORY: Final = (
    Column(title="AT", cell=lambda entry: entry["at"].replace("T", " ").partition(".")[0]),
    field("FACT", "fact"),
    field("ACTOR", "actor"),
    field("BEFORE", "before"),
    field("AFTER", "after"),
    field("MESSAGE", "message"),
    field("GENERATION", "generation", wide=True),
)
_PLAN: Final = (
    field("NAME", "name"),
    field("DECISION", "kind"),
    field("COMMAND", "command"),
    field("WORKER", "worker"),
    field("DUE", "due", wide=True),
    field("REASON", "reason"),
    field("WORKER SAYS", "plan.message"),
)
_RECONNECT_S: Final = 2.0


workers_app = typer.Typer(rich_markup_mode=None)


@workers_app.callback(invoke_without_command=True)
def workers(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List all workers; enroll minions as workers."""
    if context.invoked_subcommand is not None:
        return
    found = client_of(context).get("/workers")
    output.listing(found, form, output.WORKER_COLUMNS, key="id", chosen=columns, header=not no_header)


@workers_app.command()
def enroll(
    context: typer.Context,
    worker: WorkerId,
    fingerprint: Annotated[
        str | None,
        typer.Argument(help="As `saltern-worker fingerprint` prints it there. Without it you are asked to compare."),
    ] = None,
    *,
    api_url: Annotated[
        str | None, typer.Option("--api-url", help="The only address of its worker API, for consoles.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Make a minion a worker: believe from now on what its key signs, and place VMs on it."""
    if fingerprint is None:
        known = client_of(context).get(f"/workers/{quote(worker, safe='')}")
        fingerprint = known["fingerprint"]
        if not fingerprint:
            raise Failure(f"{worker} has not presented a key yet. Run there: saltern-worker fingerprint")
        question = f"Does `saltern-worker fingerprint` on {worker} print this?\n  {fingerprint}\nEnroll it?"
        if not sys.stdin.isatty():
            raise typer.BadParameter(f"give the fingerprint that {worker} prints", param_hint="FINGERPRINT")
        if not terminal.confirm(question):
            raise typer.Abort
    _decide(context, worker, "enroll", {"fingerprint": fingerprint, "api_url": api_url}, dry_run)


@workers_app.command()
def unenroll(context: typer.Context, worker: WorkerId, *, dry_run: DryRun = False) -> None:
    """Believe nothing in the name of a worker any more. Its VMs keep their last status."""
    _decide(context, worker, "unenroll", None, dry_run)


def plan(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """Show what the master would do now about VMs that are not in their desired state, and why."""
    found = client_of(context).get("/plan")
    if not found and form in (Format.TABLE, Format.WIDE):
        terminal.say("All VMs are in their desired state.")
        return
    output.listing(found, form, _PLAN, key="name", chosen=columns, header=not no_header)


def history(  # noqa: PLR0913 - how a list is printed
    context: typer.Context,
    vm: Id,
    *,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many entries at most.")] = 50,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """Show the history of a VM: changes of its desired state, sent commands and reports. The newest is last."""
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


def doctor(context: typer.Context, form: Output = Format.TABLE) -> None:
    """Check each part of the installation, and suggest a fix for each fault. Exits with 1 after a fault."""
    findings = examine(client_of(context), __version__)
    if form in (Format.TABLE, Format.WIDE):
        for finding in findings:
            terminal.say(f"{'ok   ' if finding.ok else 'FAULT'} {finding.part}: {finding.message}")
            if not finding.ok:
                terminal.say(f"      fix: {finding.fix}")
    else:
        output.listing([finding.plain() for finding in findings], form, (), key="part")
    faults = sum(not finding.ok for finding in findings)
    if faults:
        raise Failure(f"{faults} fault{'s' if faults > 1 else ''} found.")


def drain(context: typer.Context, worker: WorkerId, *, dry_run: DryRun = False) -> None:
    """Place no new VMs on a worker; its VMs stay."""
    _decide(context, worker, "drain", None, dry_run)


def undrain(context: typer.Context, worker: WorkerId, *, dry_run: DryRun = False) -> None:
    """Place VMs again on a worker that was drained or fenced."""
    _decide(context, worker, "undrain", None, dry_run)


def fence(
    context: typer.Context,
    worker: WorkerId,
    *,
    i_have_fenced: Annotated[
        str | None, typer.Option("--i-have-fenced", help="Repeat the worker's id to confirm that it is switched off.")
    ] = None,
    dry_run: DryRun = False,
) -> None:
    """Start the VMs of a worker that is CERTAINLY SWITCHED OFF on other workers, again from their images."""
    if i_have_fenced is None and sys.stdin.isatty():
        i_have_fenced = terminal.ask(f"If {worker} is certainly switched off, repeat its id")
    if i_have_fenced is None:
        raise typer.BadParameter(
            f"repeat {worker} to confirm that it is certainly switched off", param_hint="--i-have-fenced"
        )
    _decide(context, worker, "fence", {"i_have_fenced": i_have_fenced}, dry_run)


def _decide(context: typer.Context, worker: str, verb: str, body: object, dry_run: bool) -> None:
    path = with_query(f"/workers/{quote(worker, safe='')}/{verb}", dry_run=dry(dry_run))
    terminal.say(f"{client_of(context).post(path, body)['message']}")


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
    """Add these commands."""
    app.add_typer(workers_app, name="workers")
    for command in (drain, undrain, fence, plan, history, events, notices, doctor):
        app.command()(command)
