"""`saltern list`, `show`, `create` and the verbs of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final

import typer

from master_service.cli import output, terminal
from master_service.cli.options import (
    STATUSES,
    VMS,
    BlockS,
    Columns,
    DryRun,
    Id,
    NoHeader,
    Output,
    TimeoutS,
    Wait,
    client_of,
    dry,
    vm_path,
    with_query,
)
from master_service.cli.output import Format
from master_service.cli.progress import block, follow
from worker_service.contract import guest_entries

# A guest that powers itself off at once may never be reported as running.
UP: Final = frozenset({"running", "paused", "saving", "halted"})
OFF: Final = frozenset({"halted"})


def list_(  # noqa: PLR0913 - the filters
    context: typer.Context,
    *,
    status: Annotated[list[str] | None, typer.Option(help="Only these; may be repeated.")] = None,
    owner: Annotated[str | None, typer.Option(help="Only VMs of this user.")] = None,
    worker: Annotated[str | None, typer.Option(help="Only on this worker.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name or name=value; may be repeated: all must match.")
    ] = None,
    text: Annotated[str | None, typer.Option("-q", help="Part of the name, or the beginning of the uuid.")] = None,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """List VMs."""
    path = with_query(VMS, status=status or None, owner=owner, worker=worker, label=label or None, q=text)
    found = client_of(context).pages(path)
    output.listing(found, form, output.VM_COLUMNS, key="name", chosen=columns, header=not no_header)


def show(context: typer.Context, vm: Id, form: Output = Format.TABLE) -> None:
    """Show one VM in full."""
    output.one(client_of(context).get(vm_path(vm)), form, key="name", inner=["spec"])


def create(  # noqa: PLR0913 - the contract's parameters of start
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new VM.", show_default=False)],
    *,
    hda_image: Annotated[str, typer.Option(help="URI of the disk image, or blank:20G.", show_default=False)],
    hda_save_to: Annotated[str | None, typer.Option(help="URI to save it to when the VM halts.")] = None,
    hdb_image: Annotated[str | None, typer.Option(help="URI of a second disk's image.")] = None,
    hdb_save_to: Annotated[str | None, typer.Option(help="URI to save the second disk to when the VM halts.")] = None,
    cd_image: Annotated[str | None, typer.Option(help="URI of a CD image.")] = None,
    hypervisor: Annotated[str, typer.Option(help="kvm; xen and vbox have no driver yet.")] = "kvm",
    cpu_count: Annotated[int, typer.Option(help="Number of processors.")] = 1,
    mem_size: Annotated[int, typer.Option(help="Memory in MiB.")] = 512,
    sys_arch: Annotated[str, typer.Option(help="x86_64 or i386.")] = "x86_64",
    run_agent: Annotated[bool | None, typer.Option("--run-agent/--no-run-agent", help="Run the agent.")] = None,
    soft_list: Annotated[list[str] | None, typer.Option(help="Software to install: a,b; may be repeated.")] = None,
    hostname: Annotated[str | None, typer.Option(help="Host name of the guest; default: its name.")] = None,
    ssh_keys: Annotated[list[str] | None, typer.Option(help="Public key for logins; may be repeated.")] = None,
    user_data: Annotated[str | None, typer.Option(help="URI of a cloud-config document.")] = None,
    minion_master: Annotated[str | None, typer.Option(help="Salt master that the guest joins.")] = None,
    network: Annotated[str, typer.Option(help="user, none, network=NAME or bridge=NAME.")] = "user",
    run_policy: Annotated[str, typer.Option(help="on_failure, always, once or manual.")] = "on_failure",
    worker: Annotated[str | None, typer.Option(help="Only on this worker.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may be repeated.")] = None,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Create a VM and start it."""
    body = {
        "name": name,
        "hypervisor": hypervisor,
        "cpu_count": cpu_count,
        "mem_size": mem_size,
        "sys_arch": sys_arch,
        "hda_image": hda_image,
        "hda_save_to": hda_save_to,
        "hdb_image": hdb_image,
        "hdb_save_to": hdb_save_to,
        "cd_image": cd_image,
        "run_agent": run_agent,
        "soft_list": _entries("soft_list", soft_list),
        "hostname": hostname,
        "ssh_keys": _entries("ssh_keys", ssh_keys),
        "user_data": user_data,
        "minion_master": minion_master,
        "network": network,
        "run_policy": run_policy,
        "worker": worker,
        "labels": _labels(label),
    }
    client = client_of(context)
    path = with_query(VMS, dry_run=dry(dry_run))
    made = client.post(path, {key: value for key, value in body.items() if value is not None})
    if dry_run:
        output.print_dry_run(made, form)
        return
    # A VM with run_policy manual is not started.
    if wait_for_it and made["desired"] == "running":
        made = follow(client, made["uuid"], timeout_s, UP)
    output.done(made, "", form)


def start(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Start a VM that is off or failed, or resume a suspended one (virsh: start, resume)."""
    _request(context, vm, "start", UP if wait_for_it else None, timeout_s, dry_run, form)


def shutdown(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Ask the guest to shut down; its disks are then saved (virsh: shutdown)."""
    _request(context, vm, "shutdown", OFF if wait_for_it else None, timeout_s, dry_run, form)


def suspend(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 30,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Pause a VM in memory (virsh: suspend)."""
    _block(context, vm, "suspend", timeout_s if wait_for_it else 0, dry_run, form)


def resume(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 30,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Resume a suspended VM (virsh: resume)."""
    _block(context, vm, "resume", timeout_s if wait_for_it else 0, dry_run, form)


def destroy(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 60,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Discard a VM and its disks; NOTHING IS SAVED (virsh: destroy, undefine, and delete the storage)."""
    _block(context, vm, "destroy", timeout_s if wait_for_it else 0, dry_run, form)


def save_retry(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Retry saving disks that its worker could not save."""
    _block(context, vm, "save_retry", timeout_s if wait_for_it else 0, dry_run, form)


def modify(  # noqa: PLR0913 - what can be changed
    context: typer.Context,
    vm: Id,
    *,
    hda_save_to: Annotated[str | None, typer.Option(help="Where to save the disk; '' discards it.")] = None,
    hdb_save_to: Annotated[str | None, typer.Option(help="Where to save the second disk; '' discards it.")] = None,
    cd_image: Annotated[str | None, typer.Option(help="URI of a CD image; '' ejects the CD.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name=value adds or changes a label, name= removes it; may be repeated.")
    ] = None,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Change where the disks are saved when the VM halts, the CD, or the labels."""
    client = client_of(context)
    given = {"hda_save_to": hda_save_to, "hdb_save_to": hdb_save_to, "cd_image": cd_image}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    current = client.get(vm_path(vm))
    if label:
        changed = {**current["labels"], **_labels(label)}
        body["labels"] = {name: value for name, value in changed.items() if value}
    # With the version that was read, so that labels added by others since then are not lost.
    answer = client.patch(vm_path(current["uuid"], dry_run=dry(dry_run)), body, f'"{current["version"]}"')
    if dry_run:
        output.print_dry_run(answer, form)
    else:
        output.done(answer, f"{answer['name']} was modified: {', '.join(body)}.", form)


def wait(
    context: typer.Context,
    vm: Id,
    *,
    status: Annotated[list[str] | None, typer.Option("--for", help="Status to wait for; may be repeated.")] = None,
    timeout_s: TimeoutS = 600,
    form: Output = Format.NAME,
) -> None:
    """Wait until a VM has a status (default: running)."""
    if unknown := sorted(set(status or ()) - set(STATUSES)):
        raise typer.BadParameter(
            f"{', '.join(unknown)}: unknown status; the statuses are {', '.join(sorted(STATUSES))}"
        )
    reached = follow(client_of(context), vm, timeout_s, frozenset(status or ["running"]))
    output.one(reached, form, key="name", inner=["spec"])


def console_url(
    context: typer.Context,
    vm: Id,
    *,
    view_only: Annotated[bool, typer.Option(help="Send no keys and no pointer to the guest.")] = False,
    form: Annotated[Format | None, typer.Option("-o", "--output", help="Print the whole answer: json, yaml.")] = None,
) -> None:
    """Print a URL that opens the console of a VM in a browser, once and within 30 seconds."""
    made = client_of(context).post(vm_path(vm, "console"), {"view_only": view_only})
    if form is None:
        terminal.say(made["page"])
    else:
        output.one(made, form, key="page")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command("list")(list_)
    for command in (show, create, start, shutdown, suspend, resume, modify, destroy, wait):
        app.command()(command)
    app.command("save-retry")(save_retry)
    app.command("console-url")(console_url)


def _entries(parameter: str, given: list[str] | None) -> list[str]:
    return [entry for text in given or () for entry in guest_entries(parameter, text)]


def _labels(given: list[str] | None) -> dict[str, str]:
    found = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"{word!r} is no label; use name=value")
        found[name] = value
    return found


def _request(  # noqa: PLR0913, PLR0917 - the options of two commands
    context: typer.Context,
    vm: str,
    verb: str,
    until: frozenset[str] | None,
    timeout_s: float,
    dry_run: bool,
    form: Format,
) -> None:
    """Request a verb that answers at once, and wait for one of the statuses `until`."""
    client = client_of(context)
    answer = client.post(vm_path(vm, verb, dry_run=dry(dry_run)))
    if dry_run:
        output.print_dry_run(answer, form)
        return
    current: Mapping[str, Any] = answer["vmachine"]
    if until is None:
        output.done(current, f"{verb} of {current['name']}: {answer['message']}", form)
        return
    output.done(follow(client, current["uuid"], timeout_s, until), "", form)


def _block(  # noqa: PLR0913, PLR0917 - the options of four commands
    context: typer.Context, vm: str, verb: str, timeout_s: float, dry_run: bool, form: Format
) -> None:
    """Request a verb for which the master waits."""
    client = client_of(context)
    if dry_run:
        output.print_dry_run(client.post(vm_path(vm, verb, dry_run="true")), form)
        return
    answer = block(client, vm, verb, timeout_s)
    output.done(answer["vmachine"], answer["message"], form)
