"""`saltern start`, `shutdown` and the other verbs of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import typer

from master_service.cli.common import output
from master_service.cli.common.options import BlockS, DryRun, Id, Output, TimeoutS, Wait, client_of, dry, vm_path
from master_service.cli.common.output import Format
from master_service.cli.common.progress import OFF, UP, block, follow


def start(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vm: Id,
    *,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Start a VM that is off or failed, or resume a suspended one.

    virsh: start, resume.
    """
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
    """Ask the guest to shut down; its disks are then saved.

    virsh: shutdown.
    """
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
    """Pause a VM in memory.

    virsh: suspend.
    """
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
    """Resume a suspended VM.

    virsh: resume.
    """
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
    """Discard a VM and its disks; NOTHING IS SAVED.

    virsh: destroy, undefine, and delete the storage.
    """
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


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (start, shutdown, suspend, resume, destroy):
        app.command()(command)
    app.command("save-retry")(save_retry)


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
