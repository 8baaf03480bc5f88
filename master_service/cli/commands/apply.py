"""`saltern apply -f vms.yaml` brings VMs into the state of a file; `saltern export` writes such a file."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import (
    LONGEST_BLOCK_S,
    VMS,
    DryRun,
    TimeoutS,
    Wait,
    client_of,
    vm_path,
    with_query,
)
from master_service.cli.common.output import JsonObject, plain
from master_service.cli.common.progress import OFF, UP, block, follow, require_accepted
from worker_service.contract import GUEST_LISTS, KEEP, MODIFIABLE, guest_entries
from worker_service.contract.words import refusal_of_any

KEY: Final = "vmachines"
_CHANGEABLE: Final = (*MODIFIABLE, "labels", "protected")
_TARGETS: Final = {"hda_save_to": "hda_image", "hdb_save_to": "hdb_image"}
_VERBS: Final = {"running": "start", "halted": "shutdown", "paused": "suspend"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ApplyStep:
    """One change to make. `changes` are (field, before, after), from the master's dry run.

    `fits` is False if the worker has said in the dry run that it would refuse the start.
    """

    verb: str
    name: str
    message: str
    changes: list[tuple[str, Any, Any]] = field(default_factory=list)
    body: Mapping[str, Any] = field(default_factory=dict)
    fits: bool = True


def apply(  # noqa: PLR0913 - the options
    context: typer.Context,
    *,
    file: Annotated[
        Path | None, typer.Option("-f", "--file", help="YAML or JSON file of VMs; - for standard input.")
    ] = None,
    schema: Annotated[bool, typer.Option("--schema", help="Only print the JSON Schema of such files.")] = False,
    prune: Annotated[
        str | None,
        typer.Option("--prune", help="Also DESTROY VMs that have this label (name=value) and are not in the file."),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")] = False,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
) -> None:
    """Bring VMs into the state of a file.

    Shows the differences, then creates, modifies, starts, shuts down or suspends.
    """
    client = client_of(context)
    if schema:
        output.print_json(client.outside("/schemas/vms.json"))
        return
    if file is None:
        raise typer.BadParameter("give a file: -f vms.yaml, or -f - for standard input", param_hint="--file")
    try:
        _apply(client, file, prune, yes=yes, timeout_s=timeout_s if wait_for_it else None, dry_run=dry_run)
    except Failure as failure:
        failure.of_file = True
        raise


def _apply(  # noqa: PLR0913 - the options
    client: Client, file: Path, prune: str | None, *, yes: bool, timeout_s: float | None, dry_run: bool
) -> None:
    entries = read(file)
    # Workers are asked what a start would do there only if that is all there is to know: each answer takes a moment.
    asks = {"dry_run": "true", "ask_workers": "true" if dry_run else "false"}
    steps = [step for entry in entries for step in _difference(client, entry, asks)]
    if prune:
        steps += _surplus(client, prune, {entry["name"] for entry in entries})
    _show(steps)
    if dry_run and (refused := [step.name for step in steps if not step.fits]):
        raise Failure(f"Workers would refuse to start {', '.join(refused)}.")
    if dry_run or not steps:
        return
    if not yes and sys.stdin.isatty() and not terminal.confirm("Do this?"):
        raise Failure("Nothing was changed.")
    if not yes and not sys.stdin.isatty() and any(step.verb == "destroy" for step in steps):
        raise Failure(
            "VMs would be destroyed, and without a terminal there is no confirmation: give --yes. Nothing was changed.",
            Exit.USAGE,
        )
    for step in steps:
        _do(client, step, timeout_s)


def export(
    context: typer.Context,
    names: Annotated[list[str] | None, typer.Argument(help="Names or uuids; default: all VMs.", metavar="VM")] = None,
    *,
    label: Annotated[list[str] | None, typer.Option(help="Only VMs with this label; may be repeated.")] = None,
) -> None:
    """Print VMs as a file that `saltern apply -f` accepts."""
    client = client_of(context)
    if names:
        found = [client.get(vm_path(name)) for name in names]
    else:
        found = client.pages(with_query(VMS, label=label or None))
    output.print_yaml({KEY: [entry_of(vm) for vm in found if vm["desired"] != "destroyed"]})


def entry_of(vm: JsonObject) -> dict[str, Any]:
    """Return the entry of a VM in a file, without absent and empty fields."""
    entry = {"name": vm["name"], "state": vm["desired"], **{k: v for k, v in vm["spec"].items() if k != "name"}}
    entry |= {"worker": vm["pin"], "labels": vm["labels"], "protected": vm["protected"] or None}
    return {
        name: value
        for name, value in entry.items()
        if value not in (None, "", [], {}) or (value == "" and name in _TARGETS and vm["spec"][_TARGETS[name]])
    }


def read(file: Path) -> list[dict[str, Any]]:
    """Return the entries of a file. Raises Failure with the fault and its place."""
    import yaml  # noqa: PLC0415 - slow to import, and only for YAML

    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text()
        found = yaml.safe_load(text)
    except OSError as err:
        raise Failure(f"Cannot read {file}: {err.strerror}.", Exit.USAGE) from err
    except (yaml.YAMLError, ValueError, RecursionError) as err:  # PyYAML passes errors of a bad date or number on
        raise Failure(f"{file} is not YAML: {' '.join(str(err).split())}", Exit.USAGE) from err
    entries = found.get(KEY) if isinstance(found, dict) else None
    if not isinstance(entries, list) or set(found) != {KEY} or not all(isinstance(entry, dict) for entry in entries):
        raise Failure(
            f"{file} must have one list of VMs under `{KEY}:`; saltern apply --schema prints the schema.", Exit.USAGE
        )
    names = [entry.get("name") for entry in entries]
    for place, (entry, name) in enumerate(zip(entries, names, strict=True), 1):
        if name is None:
            raise Failure(f"{file}: VM number {place} has no name.", Exit.USAGE)
        if why := refusal_of_any(entry):
            raise Failure(f"{file}: VM number {place}: {why}", Exit.USAGE)
        if names.count(name) > 1:
            raise Failure(f"{file}: {name} occurs more than once.", Exit.USAGE)
        if entry.get("state", "running") not in _VERBS:
            raise Failure(f"{file}: the state of {name} must be one of {', '.join(_VERBS)}.", Exit.USAGE)
        entry |= {key: guest_entries(key, entry[key]) for key in GUEST_LISTS if entry.get(key)}
    return entries


def _difference(client: Client, entry: Mapping[str, Any], asks: Mapping[str, str]) -> Iterator[ApplyStep]:
    """Return the changes of one VM, from the master's dry run of each."""
    name, state = entry["name"], entry.get("state", "running")
    body = {key: value for key, value in entry.items() if key != "state"}
    try:
        vm = client.get(vm_path(name))
    except Failure as failure:
        if failure.exit_code is not Exit.NOT_FOUND:
            raise
        yield from _creation(client, name, state, body, asks)
        return
    fixed = [key for key, value in body.items() if key not in _CHANGEABLE and _differs(_current(vm, key, name), value)]
    if fixed:
        differ = "; ".join(
            f"{key} is {plain(_current(vm, key, name))}, the file has {plain(body[key])}" for key in fixed
        )
        raise Failure(f"{name} cannot be changed this way: {differ}. Destroy it first, or correct the file.")
    changed: dict[str, Any] = {
        key: _value(key, body[key])
        for key in _CHANGEABLE
        if key in body and _differs(_current(vm, key, name), body[key], key)
    }
    if changed:
        if "labels" in changed:
            changed["labels"] = body["labels"] or {}
        if "protected" in changed:
            changed["protected"] = bool(body["protected"])
        answer = client.patch(vm_path(vm["uuid"], **asks), changed)
        yield _step("modify", name, answer, changed)
    if state != vm["desired"]:
        verb = "resume" if (state, vm["desired"]) == ("running", "paused") else _VERBS[state]
        yield _step(verb, name, client.post(vm_path(vm["uuid"], verb, **asks)))


def _creation(
    client: Client, name: str, state: str, body: dict[str, Any], asks: Mapping[str, str]
) -> Iterator[ApplyStep]:
    """Return the changes that make a new VM. Raises Failure if its hypervisor cannot follow the file afterwards."""
    if state == "halted":
        body.setdefault("run_policy", "manual")
    answer = client.post(with_query(VMS, **asks), body)
    yield _step("create", name, answer, body)
    made = answer["vmachine"]
    if state == "paused" and "suspend" in made.get("lacks", ()):
        where = f"{made['spec']['hypervisor']} on {answer['worker']}"
        raise Failure(f"{name}: {where} cannot pause a VM in memory; use running or halted.")
    if state != made["desired"]:
        yield ApplyStep(verb=_VERBS[state], name=name, message="after its creation")


def _step(verb: str, name: str, answer: JsonObject, body: dict[str, Any] | None = None) -> ApplyStep:
    """Return the change that a dry run has shown."""
    fits = (answer.get("plan") or {}).get("fits") is not False
    return ApplyStep(
        verb=verb, name=name, message=answer["message"], changes=_changes(answer), body=body or {}, fits=fits
    )


def _current(vm: JsonObject, key: str, name: str) -> Any:
    if key in vm["spec"]:
        return vm["spec"][key]
    if key in ("worker", "labels", "protected"):
        return vm["pin" if key == "worker" else key]
    raise Failure(f"{name}: {key} is no parameter of a VM; saltern apply --schema lists them.", Exit.USAGE)


def _value(key: str, desired: Any) -> Any:
    """Return a value of the file as a change. Nothing as the place of a disk means that it stays on its worker."""
    return KEEP if key in _TARGETS and desired is None else desired or ""


def _differs(current: Any, desired: Any, key: str = "") -> bool:
    """Return whether two values differ. Absent and empty are equal, but not for the place that a disk is saved to."""
    if key in _TARGETS:
        return bool(current != (None if desired == KEEP else desired))
    return (current or None) != (desired or None)


def _changes(answer: JsonObject) -> list[tuple[str, Any, Any]]:
    return [(change["field"], change["before"], change["after"]) for change in answer["changes"]]


def _surplus(client: Client, label: str, names: set[str]) -> Iterator[ApplyStep]:
    if "=" not in label or not label.partition("=")[2]:
        raise Failure("--prune needs a label with its value: name=value.", Exit.USAGE)
    for vm in client.pages(with_query(VMS, label=label)):
        if vm["name"] not in names:
            yield _step("destroy", vm["name"], client.post(vm_path(vm["uuid"], "destroy", dry_run="true")))


def _show(steps: list[ApplyStep]) -> None:
    signs = {"create": "+", "destroy": "-"}
    for step in steps:
        terminal.say(f"{signs.get(step.verb, '~')} {step.name}: {step.verb} ({step.message})", of_file=True)
        for name, before, after in step.changes:
            if step.verb != "create":
                terminal.say(f"    {name}: {plain(before)} -> {plain(after)}")
            elif not (after is None or after in ("", [], {})):
                terminal.say(f"    {name}: {plain(after)}")
    if not steps:
        terminal.say("All VMs are in the state of the file.")


def _do(client: Client, step: ApplyStep, timeout_s: float | None) -> None:
    match step.verb:
        case "create":
            vm = client.post(VMS, step.body)
            until = UP if vm["desired"] == "running" else None
        case "modify":
            limit_s = min(timeout_s or 0, LONGEST_BLOCK_S)
            vm = client.patch(vm_path(step.name, timeout_s=f"{limit_s:g}"), step.body, blocks_s=limit_s)
            require_accepted(vm, limit_s)
            until = None
        case "suspend" | "resume" | "destroy":
            vm = block(client, step.name, step.verb, min(timeout_s or 0, LONGEST_BLOCK_S))["vmachine"]
            until = None
        case verb:
            vm, until = client.post(vm_path(step.name, verb))["vmachine"], UP if verb == "start" else OFF
    if timeout_s is not None and until is not None:
        vm = follow(client, vm["uuid"], timeout_s, until)
    terminal.say(f"{step.name}: {step.verb}: it is {vm['status']}.")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(apply)
    app.command()(export)
