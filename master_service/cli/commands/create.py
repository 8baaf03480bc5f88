"""`saltern create` and `modify`: what a VM is made of."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from master_service.cli.common import output
from master_service.cli.common.options import (
    VMS,
    BlockS,
    DryRun,
    Id,
    Output,
    TimeoutS,
    Wait,
    client_of,
    complete_hypervisor,
    dry,
    vm_path,
    with_query,
)
from master_service.cli.common.output import Format
from master_service.cli.common.progress import UP, follow, require_accepted
from master_service.cli.common.values import as_uri, keys, memory_mib
from worker_service.contract import guest_entries


def create(  # noqa: PLR0913 - the contract's parameters of start
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new VM.", show_default=False)],
    *,
    hda_image: Annotated[
        str, typer.Option(help="URI or path of the disk image, or blank:20G.", show_default=False, parser=as_uri)
    ],
    hda_save_to: Annotated[
        str | None,
        typer.Option(help="URI to save it to when the VM halts; else it stays on its worker.", parser=as_uri),
    ] = None,
    hdb_image: Annotated[str | None, typer.Option(help="URI of a second disk's image.", parser=as_uri)] = None,
    hdb_save_to: Annotated[
        str | None, typer.Option(help="URI to save the second disk to when the VM halts.", parser=as_uri)
    ] = None,
    discard: Annotated[
        bool, typer.Option("--discard", help="Discard a disk without a place to save it to when the VM halts.")
    ] = False,
    cd_image: Annotated[str | None, typer.Option(help="URI of a CD image.", parser=as_uri)] = None,
    hypervisor: Annotated[str, typer.Option(help="kvm, xen or vbox.", autocompletion=complete_hypervisor)] = "kvm",
    cpu_count: Annotated[int, typer.Option(help="Number of processors.")] = 1,
    mem_size: Annotated[int, typer.Option(help="Memory in MiB, or 1G.", parser=memory_mib)] = 512,
    sys_arch: Annotated[str, typer.Option(help="x86_64 or i386.")] = "x86_64",
    run_agent: Annotated[bool | None, typer.Option("--run-agent/--no-run-agent", help="Run the agent.")] = None,
    soft_list: Annotated[list[str] | None, typer.Option(help="Software to install: a,b; may be repeated.")] = None,
    hostname: Annotated[str | None, typer.Option(help="Host name of the guest; default: its name.")] = None,
    ssh_keys: Annotated[
        list[str] | None, typer.Option(help="Public key for logins, or its file; may be repeated.")
    ] = None,
    user_data: Annotated[str | None, typer.Option(help="URI of a cloud-config document.", parser=as_uri)] = None,
    minion_master: Annotated[str | None, typer.Option(help="Salt master that the guest joins.")] = None,
    network: Annotated[str, typer.Option(help="user, none, network=NAME or bridge=NAME.")] = "user",
    run_policy: Annotated[str, typer.Option(help="on_failure, always, once or manual.")] = "on_failure",
    worker: Annotated[str | None, typer.Option(help="Only on this worker.")] = None,
    label: Annotated[list[str] | None, typer.Option(help="name=value; may be repeated.")] = None,
    protect: Annotated[bool, typer.Option("--protect", help="Refuse to destroy it until `saltern unprotect`.")] = False,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Create a VM and start it.

    A path means the file of that name on the worker, as file:///path does.
    """
    if discard and hda_save_to and (hdb_save_to or not hdb_image):
        raise typer.BadParameter("each disk has a place to save it to; leave --discard out", param_hint="--discard")
    end = "" if discard else None
    body = {
        "name": name,
        "hypervisor": hypervisor,
        "cpu_count": cpu_count,
        "mem_size": mem_size,
        "sys_arch": sys_arch,
        "hda_image": hda_image,
        "hda_save_to": end if hda_save_to is None else hda_save_to,
        "hdb_image": hdb_image,
        "hdb_save_to": end if hdb_save_to is None and hdb_image else hdb_save_to,
        "cd_image": cd_image,
        "run_agent": run_agent,
        "soft_list": [entry for text in soft_list or () for entry in guest_entries("soft_list", text)],
        "hostname": hostname,
        "ssh_keys": keys(ssh_keys or ()),
        "user_data": user_data,
        "minion_master": minion_master,
        "network": network,
        "run_policy": run_policy,
        "worker": worker,
        "labels": _labels(label),
        "protected": protect or None,
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
    output.done(made, "", form, made["when_it_halts"])


def modify(  # noqa: PLR0913 - what can be changed
    context: typer.Context,
    vm: Id,
    *,
    hda_save_to: Annotated[
        str | None,
        typer.Option(help="Where to save the disk; '' discards it, `keep` leaves it on its worker.", parser=as_uri),
    ] = None,
    hdb_save_to: Annotated[str | None, typer.Option(help="The same for the second disk.", parser=as_uri)] = None,
    cd_image: Annotated[str | None, typer.Option(help="URI of a CD image; '' ejects the CD.", parser=as_uri)] = None,
    label: Annotated[
        list[str] | None, typer.Option(help="name=value adds or changes a label, name= removes it; may be repeated.")
    ] = None,
    protect: Annotated[
        bool | None, typer.Option("--protect/--no-protect", help="Refuse to destroy it, or no longer.")
    ] = None,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 30,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Change a VM: where disks are saved, CD, labels, protection."""
    client = client_of(context)
    given = {"hda_save_to": hda_save_to, "hdb_save_to": hdb_save_to, "cd_image": cd_image}
    body: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if protect is not None:
        body["protected"] = protect
    if not body and not label:
        raise typer.BadParameter("give what to change; `saltern modify --help` lists the options")
    current = client.get(vm_path(vm))
    if label:
        changed = {**current["labels"], **_labels(label)}
        body["labels"] = {name: value for name, value in changed.items() if value}
    # With the version that was read, so that labels added by others since then are not lost.
    limit_s = timeout_s if wait_for_it else 0
    path = vm_path(current["uuid"], dry_run=dry(dry_run), timeout_s=None if dry_run else f"{limit_s:g}")
    answer = client.patch(path, body, f'"{current["version"]}"', limit_s)
    if dry_run:
        output.print_dry_run(answer, form)
        return
    require_accepted(answer, limit_s)
    end = answer["when_it_halts"] if body.keys() & {"hda_save_to", "hdb_save_to"} else ""
    output.done(answer, f"{answer['name']} was modified: {', '.join(body)}.", form, end)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    app.command()(create)
    app.command()(modify)


def _labels(given: list[str] | None) -> dict[str, str]:
    found = {}
    for word in given or ():
        name, equals, value = word.partition("=")
        if not equals:
            raise typer.BadParameter(f"{word!r} is no label; use name=value")
        found[name] = value
    return found
