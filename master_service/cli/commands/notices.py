"""`saltern notices`: incidents, whether their notices were delivered, and that somebody takes care of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.application import Application
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, client_of, dry, with_query
from master_service.cli.common.output import Column, Format, JsonObject, field

_LOOK_EVERY_S: Final = 0.3
notices_app = Application(help="List incidents and their notices; acknowledge them.")


def describe_delivery(delivery: JsonObject) -> str:
    """Return the channel, the state, and the problem of the last try: `mail failed: host refuses smtp_user (535).`."""
    problem = f": {delivery['problem']}" if delivery["problem"] else ""
    return f"{delivery['channel']} {delivery['state']}{problem}"


_NOTICES: Final = (
    field("ID", "id"),
    Column(title="AT", cell=lambda notice: output.moment(notice["at"])),
    field("KIND", "kind"),
    field("FOR", "owner"),
    field("NAME", "name"),
    Column(title="SENT", cell=lambda notice: "; ".join(map(describe_delivery, notice["deliveries"])) or "-"),
    field("ACKNOWLEDGED BY", "acknowledged_by", wide=True),
    Column(title="ACKNOWLEDGED", cell=lambda notice: output.moment(notice["acknowledged_at"]), wide=True),
    field("TEXT", "text"),
)


@notices_app.command("list")
def list_notices(  # noqa: PLR0913 - the filters
    context: typer.Context,
    *,
    limit: Annotated[int, typer.Option("-n", "--limit", min=1, max=1000, help="How many at most.")] = 100,
    vm: Annotated[str | None, typer.Option(help="Only of this VM (name or uuid).", metavar="VM")] = None,
    kind: Annotated[
        list[str] | None, typer.Option(help="Only of this kind, such as failed_to_save; may be repeated.")
    ] = None,
    unacknowledged: Annotated[
        bool, typer.Option("--unacknowledged", "-u", help="Only those that are not acknowledged yet.")
    ] = False,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """List incidents and the deliveries of their notices.

    The newest is first.
    """
    state = "false" if unacknowledged else None
    path = with_query("/notices", limit=limit, vm=vm, kind=kind or None, acknowledged=state)
    output.listing(client_of(context).get(path), form, _NOTICES, key="id", chosen=columns, header=not no_header)


@notices_app.command("ack")
def acknowledge(
    context: typer.Context,
    ids: Annotated[list[int] | None, typer.Argument(help="Ids of notices.", metavar="ID", show_default=False)] = None,
    *,
    everything: Annotated[bool, typer.Option("--all", help="All that you may see.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Acknowledge notices, for all who see them.

    `saltern notices list --unacknowledged` omits them from now on.
    """
    if bool(ids) == everything:
        raise typer.BadParameter("give the ids of notices, or --all")
    body = {"all": True} if everything else {"ids": ids}
    found = client_of(context).post(with_query("/notices/ack", dry_run=dry(dry_run)), body)["notices"]
    done = "would be acknowledged; nothing was changed" if dry_run else "acknowledged"
    numbers = f" ({', '.join(str(notice['id']) for notice in found)})" if found else ""
    terminal.say(f"{len(found)} notice{'' if len(found) == 1 else 's'} {done}{numbers}.")


def follow_test(client: Client, notice_id: int, timeout_s: float) -> None:
    """Wait for the deliveries of a test notice, and print each. Raises Failure if one failed, or none is known yet."""
    until = time.monotonic() + timeout_s
    while not all(map(_is_known, found := _deliveries(client, notice_id))):
        if time.monotonic() >= until:
            raise Failure("The test was not sent in time. `saltern notices --kind test` shows its state.", Exit.TIMEOUT)
        time.sleep(_LOOK_EVERY_S)
    for delivery in found:
        terminal.say(f"Test by {describe_delivery(delivery)}{'' if delivery['problem'] else '.'}")
    failed = sorted({delivery["channel"] for delivery in found if delivery["state"] != "delivered"})
    if failed:
        raise Failure(f"The test did not arrive by {' and '.join(failed)}.")


def _is_known(delivery: JsonObject) -> bool:
    """Return whether a try has ended: a delivery that is tried again has the problem of the last one."""
    return bool(delivery["state"] != "waiting" or delivery["problem"])


def _deliveries(client: Client, notice_id: int) -> Sequence[Any]:
    notices_ = client.get(with_query("/notices", kind="test", limit=100))
    return next((notice["deliveries"] for notice in notices_ if notice["id"] == notice_id), ())


def register(app: typer.Typer) -> None:
    """Add this command."""
    app.add_typer(notices_app, name="notices")
