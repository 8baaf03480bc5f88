"""Shared by the commands: common options, arguments with completion, and the client of the master."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, get_args
from urllib.parse import quote, urlencode

import typer

from master_service.cli.common.client import Client, Failure
from master_service.cli.common.credentials import find_token
from master_service.cli.common.output import Format
from worker_service.contract import Hypervisor

VMS: Final = "/vmachines"
URL: Final = "http://127.0.0.1:8080"


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options before the command."""

    url: str
    token: str | None
    token_file: Path | None

    def client(self) -> Client:
        """Return the client of the master."""
        found = find_token(self.token, self.token_file, self.url)
        return Client(self.url, found.token, withheld=found.withheld)


def client_of(context: typer.Context) -> Client:
    """Return the client of the master for the options before the command."""
    options: Options = context.obj
    return options.client()


def vm_path(vm: str, verb: str = "", **query: Any) -> str:
    """Return the path of a VM or of one of its verbs, without parameters that are None."""
    path = f"{VMS}/{quote(vm, safe='')}{'/' if verb else ''}{verb}"
    return with_query(path, **query)


def with_query(path: str, **query: Any) -> str:
    """Return a path with a query. Omit parameters that are None, and repeat lists."""
    given = {name: value for name, value in query.items() if value is not None}
    return f"{path}?{urlencode(given, doseq=True)}" if given else path


def dry(dry_run: bool) -> str | None:
    """Return the value of `dry_run` for a query."""
    return "true" if dry_run else None


def _complete_vm(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, with_query(VMS, q=incomplete or None, limit=100), "name", incomplete)


def _complete_worker(ctx: typer.Context, incomplete: str) -> list[str]:
    return _complete(ctx, "/workers", "id", incomplete)


def complete_hypervisor(incomplete: str) -> list[str]:
    """Complete a hypervisor in the shell: all that the contract knows, whether or not a worker has them."""
    return [name for name in get_args(Hypervisor) if name.startswith(incomplete)]


def _complete(ctx: typer.Context, path: str, key: str, incomplete: str) -> list[str]:
    """Complete names in the shell, which cannot show an error."""
    given: Mapping[str, Any] = ctx.find_root().params
    url, token_file = given.get("url") or URL, given.get("token_file")
    try:
        found = find_token(given.get("token"), Path(token_file) if token_file else None, url)
        words = [entry[key] for entry in Client(url, found.token, answer_s=2.0).get(path)]
    except Failure:
        return []
    return [word for word in words if word.startswith(incomplete) and word.isprintable()]


Id = Annotated[
    str, typer.Argument(help="Name or uuid of the VM.", show_default=False, autocompletion=_complete_vm, metavar="VM")
]
Ids = Annotated[
    list[str],
    typer.Argument(
        help="Names or uuids of VMs. Each is tried; the exit code is the largest of all.",
        show_default=False,
        autocompletion=_complete_vm,
        metavar="VM",
    ),
]
WorkerId = Annotated[
    str,
    typer.Argument(
        help="Minion id of the worker.", show_default=False, autocompletion=_complete_worker, metavar="WORKER"
    ),
]
Output = Annotated[Format, typer.Option("-o", "--output", help="How to print: table, wide, json, yaml or name.")]
Columns = Annotated[
    str | None, typer.Option("--columns", help="Titles of columns, or names of fields: name,status,spec.mem_size")
]
NoHeader = Annotated[bool, typer.Option("--no-header", help="Print no column titles.")]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for the effect.")]
TimeoutS = Annotated[float, typer.Option("--timeout", min=0, max=86400, help="Seconds to wait at most.")]
LONGEST_BLOCK_S: Final = 3600
"""The longest wait of the master itself, for verbs that block."""
BlockS = Annotated[float, typer.Option("--timeout", min=0, max=LONGEST_BLOCK_S, help="Seconds to wait at most.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would happen; change nothing.")]
