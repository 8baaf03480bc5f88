"""`saltern workers`, `drain`, `undrain`, `fence` and `plan`: the hosts, and the master's decisions about them."""

from __future__ import annotations

import sys
from typing import Annotated, Final
from urllib.parse import quote

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.application import Application
from master_service.cli.common.client import Failure
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, WorkerId, client_of, dry, with_query
from master_service.cli.common.output import Format, field

_PLAN: Final = (
    field("NAME", "name"),
    field("DECISION", "kind"),
    field("COMMAND", "command"),
    field("WORKER", "worker"),
    field("DUE", "due", wide=True),
    field("REASON", "reason"),
    field("WORKER SAYS", "plan.message"),
)
workers_app = Application(help="List workers; enroll minions as workers.")


@workers_app.command("list")
def list_workers(
    context: typer.Context, form: Output = Format.TABLE, columns: Columns = None, *, no_header: NoHeader = False
) -> None:
    """List all workers, and the minions that wait to be enrolled."""
    found = client_of(context).get("/workers")
    output.listing(found, form, output.WORKER_COLUMNS, key="id", chosen=columns, header=not no_header)


@workers_app.command()
def show(context: typer.Context, worker: WorkerId, form: Output = Format.TABLE) -> None:
    """Show one worker in full, with what its hypervisors can do."""
    found = client_of(context).get(f"/workers/{quote(worker, safe='')}")
    if form not in (Format.TABLE, Format.WIDE):
        output.one(found, form, key="id")
        return
    drivers = found.get("drivers") or {}
    output.one({name: value for name, value in found.items() if name != "drivers"}, form, key="id", inner=["capacity"])
    if drivers:
        names = list(next(iter(drivers.values())))
        rows = [[name, *(output.capability(has.get(name)) for has in drivers.values())] for name in names]
        terminal.table(["capability", *drivers], rows)


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
    """Make a minion a worker.

    From now on the master believes what its key signs, and places VMs on it.
    """
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
    """Show what the master would do now, and why.

    Lists the VMs that are not in their desired state.
    """
    found = client_of(context).get("/plan")
    if not found and form in (Format.TABLE, Format.WIDE):
        terminal.say("All VMs are in their desired state.")
        return
    output.listing(found, form, _PLAN, key="name", chosen=columns, header=not no_header)


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
    """Replace a worker that is CERTAINLY SWITCHED OFF.

    Its VMs start on other workers, from their last saves or their images.
    """
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


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.add_typer(workers_app, name="workers")
    for command in (drain, undrain, fence, plan):
        app.command()(command)
