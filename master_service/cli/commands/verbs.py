"""`saltern start`, `shutdown` and the other verbs of a VM."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from master_service.cli.common import terminal
from master_service.cli.common.client import Client
from master_service.cli.common.options import BlockS, DryRun, Ids, Output, TimeoutS, Wait, client_of, dry, vm_path
from master_service.cli.common.output import Format
from master_service.cli.common.progress import OFF, UP, block, follow
from master_service.cli.common.several import Tries, confirm_destroy


def start(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    from_image: Annotated[
        bool, typer.Option("--from-image", help="Begin again from its image instead of its last save.")
    ] = False,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Start a VM that is off or failed, or resume a suspended one.

    A VM that was saved goes on from its last save. virsh: start, resume.
    """
    body = {"from": "image"} if from_image else None
    _request(context, vms, "start", UP if wait_for_it else None, timeout_s, dry_run, form, body)


def shutdown(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Ask the guest to shut down; its disks are then saved or kept.

    A disk is discarded only if create or modify said so. virsh: shutdown.
    """
    _request(context, vms, "shutdown", OFF if wait_for_it else None, timeout_s, dry_run, form)


def suspend(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 30,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Pause a VM in memory.

    virsh: suspend.
    """
    _block(context, vms, "suspend", timeout_s if wait_for_it else 0, dry_run, form)


def resume(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 30,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Resume a suspended VM.

    virsh: resume.
    """
    _block(context, vms, "resume", timeout_s if wait_for_it else 0, dry_run, form)


def destroy(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Do not ask for confirmation.")] = False,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 60,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Discard a VM and its disks; NOTHING IS SAVED.

    virsh: destroy, undefine, and delete the storage.
    """
    if not dry_run:
        confirm_destroy(client_of(context), vms, yes=yes)
    _block(context, vms, "destroy", timeout_s if wait_for_it else 0, dry_run, form)


def protect(context: typer.Context, vms: Ids, *, dry_run: DryRun = False, form: Output = Format.TABLE) -> None:
    """Refuse to destroy a VM until `saltern unprotect`."""
    _protect(context, vms, dry_run, form, protected=True)


def unprotect(context: typer.Context, vms: Ids, *, dry_run: DryRun = False, form: Output = Format.TABLE) -> None:
    """Let a protected VM be destroyed again."""
    _protect(context, vms, dry_run, form, protected=False)


def save_retry(  # noqa: PLR0913 - the options of a verb
    context: typer.Context,
    vms: Ids,
    *,
    wait_for_it: Wait = True,
    timeout_s: BlockS = 600,
    dry_run: DryRun = False,
    form: Output = Format.TABLE,
) -> None:
    """Retry saving disks that its worker could not save."""
    _block(context, vms, "save_retry", timeout_s if wait_for_it else 0, dry_run, form)


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (start, shutdown, suspend, resume, destroy, protect, unprotect):
        app.command()(command)
    app.command("save-retry")(save_retry)


def _request(  # noqa: PLR0913, PLR0917 - the options of two commands
    context: typer.Context,
    vms: list[str],
    verb: str,
    until: frozenset[str] | None,
    timeout_s: float,
    dry_run: bool,
    form: Format,
    body: Mapping[str, Any] | None = None,
) -> None:
    """Request a verb that answers at once, for all VMs, and then wait for each to have one of the statuses `until`."""
    client, tries = client_of(context), Tries(vms, form)
    if dry_run:
        _dry_run(client, tries, verb, body)
        return
    answers = tries.each(tries.names, lambda vm: client.post(vm_path(vm, verb), body))
    if until is None:
        for answer in answers:
            tries.done(answer["vmachine"], f"{verb} of {answer['vmachine']['name']}: {answer['message']}")
        tries.end()
        return
    if form in (Format.TABLE, Format.WIDE):
        for answer in answers:
            terminal.warn(f"{answer['vmachine']['name']}: {answer['message']}")
    # One after the other: those that come later go on meanwhile.
    tries.each(answers, lambda answer: tries.done(follow(client, answer["vmachine"]["uuid"], timeout_s, until)))
    tries.end()


def _protect(context: typer.Context, vms: list[str], dry_run: bool, form: Format, *, protected: bool) -> None:
    client, tries = client_of(context), Tries(vms, form)

    def change(vm: str) -> None:
        answer = client.patch(vm_path(vm, dry_run=dry(dry_run)), {"protected": protected})
        if dry_run:
            tries.dry_run(answer)
        else:
            state = "is protected: this master refuses to destroy it" if protected else "may be destroyed"
            tries.done(answer, f"{answer['name']} {state}.")

    tries.each(tries.names, change)
    tries.end()


def _block(  # noqa: PLR0913, PLR0917 - the options of four commands
    context: typer.Context, vms: list[str], verb: str, timeout_s: float, dry_run: bool, form: Format
) -> None:
    """Request a verb for which the master waits."""
    client, tries = client_of(context), Tries(vms, form)
    if dry_run:
        _dry_run(client, tries, verb)
        return

    def request(vm: str) -> None:
        answer = block(client, vm, verb, timeout_s)
        tries.done(answer["vmachine"], answer["message"])

    tries.each(tries.names, request)
    tries.end()


def _dry_run(client: Client, tries: Tries, verb: str, body: Mapping[str, Any] | None = None) -> None:
    tries.each(tries.names, lambda vm: tries.dry_run(client.post(vm_path(vm, verb, dry_run="true"), body)))
    tries.end()
