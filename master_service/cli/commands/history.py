"""`saltern history`, `audit` and `events`: what happened, and what happens now."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Annotated, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import VMS, Columns, Id, NoHeader, Output, client_of, vm_path, with_query
from master_service.cli.common.output import Column, Format, JsonObject, field
from master_service.cli.common.statuses import word_of
from master_service.cli.common.values import moment


def _message(entry: JsonObject) -> str:
    cause = entry.get("cause")  # an older master gives none
    return f"{entry['message']} ({cause})" if entry["message"] and cause else cause or output.plain(entry["message"])


_HISTORY: Final = (
    Column(title="AT", cell=lambda entry: output.moment(entry["at"])),
    field("FACT", "fact"),
    field("ACTOR", "actor"),
    field("BEFORE", "before"),
    field("AFTER", "after"),
    Column(title="MESSAGE", cell=_message),
    field("STATUS", "status", wide=True),
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
_EVENT: Final = (("AT (UTC)", 19), ("NAME", 16), ("STATUS", 11))
_WIDE: Final = (*_EVENT, ("OWNER", 12), ("WORKER", 12))
"""The columns of events with their widths. The sentence follows."""
_RECONNECT_S: Final = 2.0
_REMEMBERED: Final = 1000
"""After a break the master may send some of so many events again."""


def find(client: Client, given: str) -> tuple[JsonObject, list[JsonObject]]:
    """Return a VM by uuid or name, and destroyed VMs of the same name, the newest first.

    Without another VM it is the newest destroyed one of that name. Raises Failure if there was never one.
    """
    try:
        vm: JsonObject = client.get(vm_path(given))
    except Failure as failure:
        if failure.exit_code is not Exit.NOT_FOUND or not (destroyed := destroyed_vms(client, given)):
            raise
        return destroyed[0], destroyed[1:]
    return vm, [] if vm["uuid"] == given else destroyed_vms(client, given)


def destroyed_vms(client: Client, name: str) -> list[JsonObject]:
    """Return destroyed VMs of this name, the newest first. Raises Failure."""
    # An older master does not know the parameter `name`.
    found = [each for each in client.pages(with_query(VMS, name=name, status="destroyed")) if each["name"] == name]
    return sorted(found, key=lambda each: str(each["changed_at"]), reverse=True)


def _note(vm: JsonObject, namesakes: Sequence[JsonObject]) -> None:
    """Say which VM is shown if its name does not tell."""
    if vm["status"] == "destroyed":
        terminal.warn(
            f"{vm['name']} was destroyed at {output.moment(vm['changed_at'])} UTC. Its uuid was {vm['uuid']}."
        )
    if namesakes:
        others = ", ".join(f"{each['uuid']} (until {output.moment(each['changed_at'])} UTC)" for each in namesakes[:5])
        terminal.warn(
            f"This is {vm['uuid']}. Destroyed VMs had the same name: {others}. Give a uuid to see one of them."
        )


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

    It has the changes of its desired state, sent commands and reports, with their causes. The newest is last. The name
    of a destroyed VM still finds it, unless another VM has the name now.
    """
    client = client_of(context)
    found, namesakes = find(client, vm)
    _note(found, namesakes)
    entries = client.get(vm_path(found["uuid"], "history", limit=limit))
    output.listing(entries[::-1], form, _HISTORY, key="id", chosen=columns, header=not no_header)


def events(  # noqa: PLR0913 - the filters
    context: typer.Context,
    vm: Annotated[str | None, typer.Argument(help="Only of this VM (name or uuid).", metavar="VM")] = None,
    *,
    owner: Annotated[str | None, typer.Option(help="Only of VMs of this user.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name or name=value; may be repeated: all must match.")
    ] = None,
    status: Annotated[
        list[str] | None, typer.Option(help="Only events after which the VM has this status; may be repeated.")
    ] = None,
    count: Annotated[int | None, typer.Option("-n", "--count", min=1, help="Stop after this many.")] = None,
    form: Output = Format.TABLE,
    no_header: NoHeader = False,
) -> None:
    """Show what happens to VMs, until Ctrl+C. Reconnects by itself.

    Of a VM that is destroyed already it shows the last events. `-o json` prints one line for each event.
    """
    client, show = client_of(context), _printer(form)
    words = [word_of(text) for text in status or ()]
    found: JsonObject | None = None
    if vm is not None:
        found, namesakes = find(client, vm)
        _note(found, namesakes)
    if form in (Format.TABLE, Format.WIDE) and not no_header:
        terminal.say(_row([title for title, _ in _columns(form)], "EVENT", form))
    if found is not None and found["status"] == "destroyed":
        about = {name: found[name] for name in ("uuid", "name", "owner", "worker", "labels")}
        for entry in client.get(vm_path(found["uuid"], "history", limit=count or 50))[::-1]:
            show({**about, **entry})
        return
    path = with_query("/events", vm=found and found["uuid"], owner=owner, label=label or None, status=words or None)
    _follow(client, path, show, count, until_destroyed=found is not None)


def _follow(
    client: Client, path: str, show: Callable[[JsonObject], None], count: int | None, *, until_destroyed: bool
) -> None:
    """Show events as they come, each once."""
    last, shown, known = None, 0, set[int]()
    while True:
        try:
            for last_id, kind, data in client.events(path, last):
                last = last_id or last
                if kind == "reset":
                    terminal.warn(
                        "Too much has happened meanwhile: events are missing here. `saltern list` shows the VMs."
                    )
                if kind != "change" or data["id"] in known:
                    continue
                known = {each for each in known if each > data["id"] - _REMEMBERED} | {data["id"]}
                show(data)
                shown += 1
                if shown == count or (until_destroyed and data["status"] == "destroyed"):
                    return
        except Failure as failure:
            if failure.exit_code is not Exit.FAILED and failure.exit_code is not Exit.TIMEOUT:
                raise
            if last is None and not shown:
                raise
            terminal.warn(f"{failure} Trying again.")
        time.sleep(_RECONNECT_S)


def _printer(form: Format) -> Callable[[JsonObject], None]:
    def show(event: JsonObject) -> None:
        match form:
            case Format.JSON:
                terminal.write(json.dumps(event) + "\n")  # one line each, for programs
            case Format.YAML:
                terminal.write("---\n" + output.yaml_of(event))
            case Format.NAME:
                terminal.say(event["name"])
            case Format.TABLE | Format.WIDE:
                cells = [output.moment(event["at"]), event["name"], event["status"], event["owner"], event["worker"]]
                terminal.say(_row(cells, event["sentence"], form))

    return show


def _columns(form: Format) -> tuple[tuple[str, int], ...]:
    return _WIDE if form is Format.WIDE else _EVENT


def _row(cells: Sequence[str | None], end: str, form: Format) -> str:
    padded = (output.plain(cell).ljust(width) for cell, (_, width) in zip(cells, _columns(form), strict=False))
    return "  ".join([*padded, end])


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
