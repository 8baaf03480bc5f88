"""`saltern adopt`, and `saltern list --unmanaged`: VMs that were started past the master."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.options import DryRun, Output, client_of, dry, with_query
from master_service.cli.common.output import Format, field

_COLUMNS: Final = (
    field("NAME", "name"),
    field("STATUS", "state"),
    field("WORKER", "worker"),
    field("SINCE", "since"),
    field("UUID", "uuid"),
    field("OWNER", "owner", wide=True),
)


def adopt(  # noqa: PLR0913 - the parts of the request
    context: typer.Context,
    vm: Annotated[
        str, typer.Argument(help="Name or uuid, as `saltern list --unmanaged` shows it.", metavar="NAME|UUID")
    ],
    *,
    owner: Annotated[str, typer.Option(help="The user that the VM will belong to.", metavar="USER")],
    worker: Annotated[
        str | None, typer.Option(help="The worker that has it, if several have one of this name.", metavar="WORKER")
    ] = None,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Manage a VM that was started past the master, as it is."""
    found = _one(_unmanaged(context, worker), vm, worker)
    path = f"/workers/{quote(found['worker'], safe='')}/vmachines/{quote(found['uuid'], safe='')}/adopt"
    answer = client_of(context).post(with_query(path, dry_run=dry(dry_run)), {"owner": owner})
    if dry_run:
        output.print_dry_run(answer, form)
        return
    message = f"{answer['name']} on {answer['worker']} belongs to {answer['owner']} now. It goes on as it is."
    output.done(answer, message, form)


def list_unmanaged(
    context: typer.Context, worker: str | None, form: Format, columns: str | None, *, header: bool
) -> None:
    """List the VMs that this master does not manage."""
    found = _unmanaged(context, worker)
    if not found and form in (Format.TABLE, Format.WIDE):
        terminal.say("This master manages all VMs on its workers.")
        return
    output.listing(found, form, _COLUMNS, key="name", chosen=columns, header=header)


def _unmanaged(context: typer.Context, only: str | None) -> list[dict[str, Any]]:
    """Return the VMs of all workers, or of one, that are not assigned to them, each with its worker."""
    workers = client_of(context).get("/workers")
    if only is not None and only not in {worker["id"] for worker in workers}:
        raise Failure(f"There is no worker {only}. `saltern workers` shows all of them.", Exit.NOT_FOUND)
    return [
        {**vm, "worker": worker["id"]}
        for worker in workers
        if only in (None, worker["id"])
        for vm in worker["unassigned_vms"]
    ]


def _one(found: list[dict[str, Any]], vm: str, worker: str | None) -> Mapping[str, Any]:
    """Return the VM of this name or uuid. Raises Failure if there is none, or more than one."""
    fitting = [each for each in found if vm in (each["name"], each["uuid"])]
    if not fitting:
        where = f" on {worker}" if worker else ""
        raise Failure(
            f"There is no unmanaged VM {vm}{where}. `saltern list --unmanaged` shows all of them; one that was started "
            "a moment ago is there after the next poll.",
            Exit.NOT_FOUND,
        )
    if len(fitting) > 1:
        names = ", ".join(sorted(each["worker"] for each in fitting))
        raise Failure(f"{vm} is on {names}. Give one of them with --worker.", Exit.USAGE)
    return fitting[0]


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.command()(adopt)
