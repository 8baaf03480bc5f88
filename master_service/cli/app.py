"""The commands of `saltern`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from master_service.cli import output
from master_service.cli.client import Client, Exit, Failure, find_token
from master_service.cli.output import Format

app = typer.Typer(
    name="saltern",
    help="Virtual machines on many hypervisor hosts through Salt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=True,
)

_LOOK_EVERY_S: Final = 0.5
_VMS: Final = "/vmachines"

Id = Annotated[str, typer.Argument(help="Name or uuid of the VM.", show_default=False)]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the effect is seen.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0, help="Seconds to wait at most.")]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Options:
    url: str
    token: str | None
    token_file: Path | None

    def client(self) -> Client:
        return Client(self.url, find_token(self.token, self.token_file))


@app.callback()
def options(
    context: typer.Context,
    *,
    url: Annotated[str, typer.Option(envvar="SALTERN_URL", help="Where the master listens.")] = "http://127.0.0.1:8080",
    token_file: Annotated[
        Path | None, typer.Option(envvar="SALTERN_TOKEN_FILE", help="File with your token.", show_default=False)
    ] = None,
    token: Annotated[
        str | None, typer.Option(envvar="SALTERN_TOKEN", help="Your token. Better in a file.", show_default=False)
    ] = None,
) -> None:
    """Virtual machines on many hypervisor hosts through Salt."""
    context.obj = _Options(url=url, token=token, token_file=token_file)


@app.command("list")
def list_(context: typer.Context, form: Output = Format.TABLE) -> None:
    """List all VMs."""
    output.vms(_client(context).get(_VMS), form)


@app.command()
def show(context: typer.Context, vm: Id, form: Output = Format.TABLE) -> None:
    """Show all about one VM."""
    output.one_vm(_client(context).get(_path(vm)), form)


@app.command()
def create(  # noqa: PLR0913 - the contract's parameters of start
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="Name of the new VM.", show_default=False)],
    *,
    hda_image: Annotated[str, typer.Option(help="URI of the disk image, or blank:20G.", show_default=False)],
    hda_save_to: Annotated[str | None, typer.Option(help="Where to save it when the VM halts.")] = None,
    hdb_image: Annotated[str | None, typer.Option(help="URI of a second disk's image.")] = None,
    hdb_save_to: Annotated[str | None, typer.Option(help="Where to save that when the VM halts.")] = None,
    cd_image: Annotated[str | None, typer.Option(help="URI of a CD image.")] = None,
    hypervisor: Annotated[str, typer.Option(help="kvm, xen or vbox.")] = "kvm",
    cpu_count: Annotated[int, typer.Option(help="Number of processors.")] = 1,
    mem_size: Annotated[int, typer.Option(help="Memory in MiB.")] = 512,
    sys_arch: Annotated[str, typer.Option(help="x86_64 or i386.")] = "x86_64",
    run_agent: Annotated[bool | None, typer.Option("--run-agent/--no-run-agent", help="Run the agent.")] = None,
    soft_list: Annotated[list[str] | None, typer.Option(help="Software to install; may be repeated.")] = None,
    network: Annotated[str, typer.Option(help="user, none, network=NAME or bridge=NAME.")] = "user",
    run_policy: Annotated[str, typer.Option(help="on_failure, always, once or manual.")] = "on_failure",
    worker: Annotated[str | None, typer.Option(help="Only on this worker.")] = None,
    wait_for_it: Wait = True,
    timeout_s: TimeoutS = 600,
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
        "soft_list": soft_list or [],
        "network": network,
        "run_policy": run_policy,
        "worker": worker,
    }
    client = _client(context)
    made = client.post(_VMS, {key: value for key, value in body.items() if value is not None})
    # A manual VM is created off: there is nothing to wait for.
    if wait_for_it and made["wanted"] == "running":
        made = _wait(client, made["uuid"], timeout_s, _UP)
    output.one_vm(made, form)


@app.command()
def start(
    context: typer.Context, vm: Id, *, wait_for_it: Wait = True, timeout_s: TimeoutS = 600, form: Output = Format.TABLE
) -> None:
    """Start a VM that is off or failed; let a suspended one run on (virsh: start, resume)."""
    _ask(context, vm, "start", _UP if wait_for_it else None, timeout_s, form)


@app.command()
def shutdown(
    context: typer.Context, vm: Id, *, wait_for_it: Wait = True, timeout_s: TimeoutS = 600, form: Output = Format.TABLE
) -> None:
    """Ask the guest to shut down; its disks are then saved as asked (virsh: shutdown)."""
    _ask(context, vm, "shutdown", _OFF if wait_for_it else None, timeout_s, form)


@app.command()
def suspend(
    context: typer.Context, vm: Id, *, wait_for_it: Wait = True, timeout_s: TimeoutS = 30, form: Output = Format.TABLE
) -> None:
    """Pause a VM in memory (virsh: suspend)."""
    _block(context, vm, "suspend", timeout_s if wait_for_it else 0, form)


@app.command()
def resume(
    context: typer.Context, vm: Id, *, wait_for_it: Wait = True, timeout_s: TimeoutS = 30, form: Output = Format.TABLE
) -> None:
    """Let a suspended VM run on (virsh: resume)."""
    _block(context, vm, "resume", timeout_s if wait_for_it else 0, form)


@app.command()
def destroy(
    context: typer.Context, vm: Id, *, wait_for_it: Wait = True, timeout_s: TimeoutS = 60, form: Output = Format.TABLE
) -> None:
    """Discard a VM and its disks; NOTHING IS SAVED (virsh: destroy, undefine, and delete the storage)."""
    _block(context, vm, "destroy", timeout_s if wait_for_it else 0, form)


@app.command()
def wait(
    context: typer.Context,
    vm: Id,
    *,
    status: Annotated[list[str] | None, typer.Option("--for", help="Status to wait for; may be repeated.")] = None,
    timeout_s: TimeoutS = 600,
    form: Output = Format.NAME,
) -> None:
    """Wait until a VM has a status (default: running)."""
    if unknown := sorted(set(status or ()) - _STATUSES):
        raise typer.BadParameter(f"{', '.join(unknown)}: no status; there are {', '.join(sorted(_STATUSES))}")
    output.one_vm(_wait(_client(context), vm, timeout_s, frozenset(status or ["running"])), form)


@app.command()
def workers(context: typer.Context, form: Output = Format.TABLE) -> None:
    """List all workers."""
    output.workers(_client(context).get("/workers"), form)


_STATUSES: Final = frozenset(
    {"pending", "preparing", "installing", "running", "paused", "destroying", "saving", "halted", "failed", "destroyed"}
)
# A guest that powers itself off at once may never be seen running: it did start.
_UP: Final = frozenset({"running", "paused", "saving", "halted"})
_OFF: Final = frozenset({"halted"})


def _client(context: typer.Context) -> Client:
    options: _Options = context.obj
    return options.client()


def _path(vm: str, verb: str = "") -> str:
    return f"{_VMS}/{quote(vm, safe='')}{'/' if verb else ''}{verb}"


def _ask(  # noqa: PLR0913, PLR0917 - the options of two commands
    context: typer.Context, vm: str, verb: str, until: frozenset[str] | None, timeout_s: float, form: Format
) -> None:
    """A verb that answers at once; wait for one of the statuses `until`."""
    client = _client(context)
    seen = client.post(_path(vm, verb))["vmachine"]
    if until is not None:
        seen = _wait(client, seen["uuid"], timeout_s, until)
    output.one_vm(seen, form)


def _block(context: typer.Context, vm: str, verb: str, timeout_s: float, form: Format) -> None:
    """A verb that blocks in the master."""
    answer = _client(context).post(f"{_path(vm, verb)}?timeout_s={timeout_s:g}", blocks_s=timeout_s)
    if not answer["done"] and timeout_s:
        refused = answer["vmachine"]["problems"]
        told = " ".join(problem["message"] for problem in refused)
        raise Failure(f"{answer['message']} {told}".strip(), Exit.TIMEOUT)
    output.one_vm(answer["vmachine"], form)


def _wait(client: Client, vm: str, timeout_s: float, until: frozenset[str]) -> Mapping[str, Any]:
    """Follow a VM until it has one of these statuses. Raises Failure when it failed, or the time is over."""
    ends = time.monotonic() + timeout_s
    with output.Progress() as progress:
        while True:
            seen = client.get(_path(vm))
            progress.show(seen)
            if seen["status"] in until:
                return dict(seen)
            if seen["status"] in ("failed", "destroyed"):
                raise Failure(_why(seen))
            if time.monotonic() >= ends:
                raise Failure(f"Not within {timeout_s:g} s: {output.progress_line(seen)}", Exit.TIMEOUT)
            time.sleep(_LOOK_EVERY_S)


def _why(vm: Mapping[str, Any]) -> str:
    return f"{vm['name']} is {vm['status']}: {vm['reason'] or vm['message']}"
