"""`saltern images`: list, prefetch, pin and unpin base images in the caches of workers."""

from __future__ import annotations

from typing import Annotated

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.application import Application
from master_service.cli.common.client import Failure
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, client_of, dry, with_query
from master_service.cli.common.output import Column, Format, field

app = Application(help="List the workers' base images; prefetch and pin them.")
Uri = Annotated[str, typer.Argument(help="URI of the image.", show_default=False, metavar="URI")]
Workers = Annotated[
    list[str] | None, typer.Option("--worker", help="Only this worker; may be repeated. Default: all that answer.")
]


@app.command("list")
def list_images(
    context: typer.Context,
    *,
    sizes: Annotated[
        bool, typer.Option("--sizes", help="Ask the workers for sizes and pins, which takes seconds.")
    ] = False,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """List base images in the caches of workers."""
    found = client_of(context).get(with_query("/images", sizes="true" if sizes else None))
    shown = [field("URI", "uri"), Column(title="WORKERS", cell=lambda image: ", ".join(image["workers"]))]
    if sizes:
        shown.append(Column(title="SIZE", cell=lambda image: output.mib(image.get("size"))))
        shown.append(Column(title="PINNED", cell=lambda image: ", ".join(image.get("pinned") or ()) or "-"))
    output.listing(found, form, shown, key="uri", chosen=columns, header=not no_header)


@app.command()
def prefetch(
    context: typer.Context,
    uri: Uri,
    *,
    worker: Workers = None,
    pin_it: Annotated[bool, typer.Option("--pin", help="Keep it in the cache until it is unpinned.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Fetch an image before a VM needs it."""
    _ask(context, "/images", {"uri": uri, "pin": pin_it}, worker, dry_run)


@app.command()
def pin(context: typer.Context, uri: Uri, *, worker: Workers = None, dry_run: DryRun = False) -> None:
    """Keep an image in the caches that have it."""
    _ask(context, "/images/pin", {"uri": uri}, worker, dry_run)


@app.command()
def unpin(context: typer.Context, uri: Uri, *, worker: Workers = None, dry_run: DryRun = False) -> None:
    """Allow the removal of an image that no VM uses."""
    _ask(context, "/images/unpin", {"uri": uri}, worker, dry_run)


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    cli.add_typer(app, name="images")


def _ask(context: typer.Context, path: str, body: dict[str, object], workers: list[str] | None, dry_run: bool) -> None:
    answer = client_of(context).post(
        with_query(path, dry_run=dry(dry_run)), body | ({"workers": workers} if workers else {}), blocks_s=30
    )
    for one in answer["workers"]:
        terminal.say(f"{one['worker']}: {one['message']}")
    if not answer["workers"]:
        raise Failure("No worker answers, so nothing was sent. `saltern doctor` shows why.")
    if failed := sum(not one["success"] for one in answer["workers"]):
        raise Failure(f"{failed} of {len(answer['workers'])} workers did not do it.")
