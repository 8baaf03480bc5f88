"""`saltern images`: list, prefetch, cancel, pin, unpin and clean base images in the caches of workers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.application import Application
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import Columns, DryRun, NoHeader, Output, client_of, dry, with_query
from master_service.cli.common.output import Column, Format, field
from master_service.cli.common.progress import ProgressDisplay
from master_service.cli.common.values import as_uri

app = Application(help="List the workers' base images; prefetch, pin and clean them.")
Uri = Annotated[
    str, typer.Argument(help="URI of the image, or a path on the workers.", show_default=False, metavar="URI")
]
Workers = Annotated[
    list[str] | None, typer.Option("--worker", help="Only this worker; may be repeated. Default: all that answer.")
]
Json = Mapping[str, Any]

_ANSWER_S: Final = 30
_LOOK_EVERY_S: Final = 1.0
_INTERRUPTED: Final = 130
"""The exit code of a shell for a program that Ctrl+C ended."""
_SHOWN_USERS: Final = 3


def _state(image: Json) -> str:
    """Return `cached`, and what is on its way or failed, with the worker and why."""
    copies = image["copies"] or ()
    found = ["cached"] if any(copy["state"] == "cached" for copy in copies) or not copies else []
    return "; ".join([*found, *(_on_its_way(copy) for copy in copies if copy["state"] != "cached")])


def _on_its_way(copy: Json) -> str:
    worker, problem = copy["worker"], f": {copy['problem']}" if copy["problem"] else ""
    match copy["state"]:
        case "fetching":
            return f"fetching on {worker} ({_amount(copy)})"
        case "failed":
            return f"failed on {worker}{problem}"
        case "waiting" if copy["tries"]:
            return f"failed {_times(copy['tries'])} on {worker}, tried again{problem}"
        case _:
            return f"waiting on {worker}"


def _amount(copy: Json) -> str:
    if not copy["total"]:
        return output.mib(copy["done"])
    return f"{100 * copy['done'] // copy['total']} % of {output.mib(copy['total'])}"


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _pinned(image: Json) -> str:
    if not (pinned := image.get("pinned")):
        return "-"
    return f"{', '.join(pinned)} (by {image['pinned_by'] or 'an administrator of the worker'})"


def _last_used(image: Json) -> str:
    times = [copy["last_used"] for copy in image.get("copies") or () if copy["last_used"]]
    return output.moment(max(times)) if times else "-"


def _used_by(image: Json) -> str:
    users = sorted({vm for copy in image.get("copies") or () for vm in copy["used_by"]})
    more = len(users) - _SHOWN_USERS
    return ", ".join([*users[:_SHOWN_USERS], *([f"{more} more"] if more > 0 else [])]) or "-"


COLUMNS: Final = (
    field("URI", "uri"),
    Column(title="SIZE", cell=lambda image: output.mib(image.get("size"))),
    Column(title="STATE", cell=_state),
    Column(title="PINNED", cell=_pinned),
    Column(title="LAST USED", cell=_last_used),
    Column(title="USED BY", cell=_used_by),
)


_WITHOUT_ANSWERS: Final = ("URI", "SIZE")


@app.command("list")
def list_images(
    context: typer.Context,
    *,
    sizes: Annotated[
        bool, typer.Option("--sizes/--no-sizes", help="Ask the workers now, or show what they reported last.")
    ] = True,
    form: Output = Format.TABLE,
    columns: Columns = None,
    no_header: NoHeader = False,
) -> None:
    """List images in the caches of workers, and those on their way.

    Users who may not see workers get the images that they may use: public ones, and those of their own VMs.
    """
    client = client_of(context)
    try:
        found = client.get(with_query("/images", sizes="true" if sizes else None))
    except Failure as err:
        if not sizes or err.exit_code is not Exit.FAILED:
            raise
        terminal.warn(f"The workers were not asked. {err} These are from their last reports:")
        found = client.get("/images")
    answered = any(image["copies"] is not None for image in found)
    shown = [column for column in COLUMNS if answered or column.title in _WITHOUT_ANSWERS]
    if any(image["workers"] for image in found):
        shown.insert(1, Column(title="WORKERS", cell=lambda image: ", ".join(image["workers"]) or "-"))
    output.listing(found, form, shown, key="uri", chosen=columns, header=not no_header)


@app.command()
def prefetch(  # noqa: PLR0913 - the options of a command that waits
    context: typer.Context,
    uri: Uri,
    *,
    worker: Workers = None,
    pin_it: Annotated[bool, typer.Option("--pin", help="Keep it in the cache until it is unpinned.")] = False,
    wait_for_it: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until it is in the cache.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", min=0, max=86400, help="Seconds to wait at most.")] = 3600,
    dry_run: DryRun = False,
) -> None:
    """Fetch an image before a VM needs it. Ctrl+C ends the waiting, and `images cancel` the fetch."""
    uri = as_uri(uri)
    answers = _ask(context, "/images", {"uri": uri, "pin": pin_it}, worker, dry_run)
    waits = wait_for_it and not dry_run
    _print([one for one in answers if not (waits and one["success"])])
    if waits:
        try:
            _follow(client_of(context), uri, [one["worker"] for one in answers if one["success"]], timeout_s)
        except KeyboardInterrupt:
            terminal.warn(f"The fetch goes on. `saltern images` shows it, and `saltern images cancel {uri}` ends it.")
            raise typer.Exit(_INTERRUPTED) from None
    _require_all(answers)


@app.command()
def cancel(context: typer.Context, uri: Uri, *, worker: Workers = None, dry_run: DryRun = False) -> None:
    """Stop fetching an image. What was fetched so far is dropped."""
    answers = _ask(context, "/images/cancel", {"uri": as_uri(uri)}, worker, dry_run)
    fetching = [one for one in answers if one["code"] != "not_found"]
    _print(fetching or answers)
    if not fetching:
        raise Failure("Nothing was cancelled.")
    _require_all(fetching)


@app.command()
def pin(context: typer.Context, uri: Uri, *, worker: Workers = None, dry_run: DryRun = False) -> None:
    """Keep an image in the caches that have it."""
    answers = _ask(context, "/images/pin", {"uri": as_uri(uri)}, worker, dry_run)
    _print(answers)
    _require_all(answers)


@app.command()
def unpin(context: typer.Context, uri: Uri, *, worker: Workers = None, dry_run: DryRun = False) -> None:
    """Allow the removal of an image that no VM uses."""
    answers = _ask(context, "/images/unpin", {"uri": as_uri(uri)}, worker, dry_run)
    _print(answers)
    _require_all(answers)


@app.command()
def clean(
    context: typer.Context,
    *,
    worker: Workers = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Remove them without a question.")] = False,
    dry_run: DryRun = False,
) -> None:
    """Remove images that are neither used nor pinned.

    It also forgets failed prefetches.
    """
    client = client_of(context)
    body = {"workers": worker} if worker else {}
    if dry_run or not yes:
        found = client.post("/images/clean?dry_run=true", body, blocks_s=_ANSWER_S)["workers"]
        _show_cleaned(found, "would free")
        if dry_run or not any(one["images"] for one in found):
            return
        if not terminal.is_interactive():
            raise Failure("Nothing was removed. Give -y to remove these images.", Exit.USAGE)
        if not terminal.confirm("Remove these images?"):
            raise Failure("Nothing was removed.")
    answers = client.post("/images/clean", body, blocks_s=_ANSWER_S)["workers"]
    _show_cleaned(answers, "freed")
    _require_all(answers)


def register(cli: typer.Typer) -> None:
    """Add these commands."""
    cli.add_typer(app, name="images")


def _ask(context: typer.Context, path: str, body: Json, workers: list[str] | None, dry_run: bool) -> Sequence[Json]:
    """Send a request about an image, and return the answer of each worker. Raises Failure if none answers."""
    given = {**body, **({"workers": workers} if workers else {})}
    query = with_query(path, dry_run=dry(dry_run))
    answers: Sequence[Json] = client_of(context).post(query, given, blocks_s=_ANSWER_S)["workers"]
    if not answers:
        raise Failure("No worker answers, so nothing was sent. `saltern doctor` shows why.")
    return answers


def _print(answers: Sequence[Json]) -> None:
    for one in answers:
        terminal.say(f"{one['worker']}: {one['message']}")


def _require_all(answers: Sequence[Json]) -> None:
    failed = [one for one in answers if not one["success"]]
    if failed:
        raise Failure(f"{len(failed)} of {len(answers)} workers did not do it.")


def _follow(client: Client, uri: str, workers: Sequence[str], timeout_s: float) -> None:
    """Wait until an image is in the caches of these workers. Raises Failure if one gives up, or time is over."""
    if not workers:
        return
    ends, path = time.monotonic() + timeout_s, with_query("/images/copies", uri=uri, worker=workers)
    with ProgressDisplay() as display:
        while True:
            copies = client.get(path)
            if all(copy["state"] in ("cached", "failed", "absent") for copy in copies):
                break
            display.show(_as_progress(copies))
            if time.monotonic() >= ends:
                raise Failure(
                    f"Not within {timeout_s:g} s, and the fetch goes on: {'; '.join(map(_line, copies))}", Exit.TIMEOUT
                )
            time.sleep(_LOOK_EVERY_S)
    for copy in copies:
        if copy["state"] == "cached":
            terminal.say(_line(copy))
    if wrong := [copy for copy in copies if copy["state"] != "cached"]:
        raise Failure("; ".join(map(_line, wrong)))


def _line(copy: Json) -> str:
    match copy["state"]:
        case "cached":
            return f"{copy['worker']}: in the cache ({output.mib(copy['size'])})"
        case "absent":
            return f"{copy['worker']}: cancelled"
        case "failed":
            return f"{copy['worker']}: {copy['problem']}"
        case "unknown":
            return f"{copy['worker']}: no answer"
        case _:
            return _on_its_way(copy)


def _as_progress(copies: Sequence[Json]) -> dict[str, Any]:
    """Return the state of all fetches in the form in which a VM shows its own."""
    coming = [copy for copy in copies if copy["state"] not in ("cached", "failed", "absent")]
    totals = [copy["total"] for copy in coming]
    total = sum(totals) if all(totals) else None
    progress = {"phase": "image", "done": sum(copy["done"] for copy in coming), "total": total}
    problems = dict.fromkeys(copy["problem"] for copy in coming if copy["problem"])
    return {
        "name": f"{', '.join(copy['worker'] for copy in coming)}:",
        "status": "fetching" if any(copy["state"] == "fetching" for copy in coming) else "waiting",
        "progress": progress if total else None,
        "reason": "; ".join(problems),
    }


def _show_cleaned(found: Sequence[Json], verb: str) -> None:
    for one in found:
        if not one["success"]:
            terminal.say(f"{one['worker']}: {one['message']}")
            continue
        for image in one["images"]:
            terminal.say(f"{one['worker']}: {', '.join(image['uris']) or 'an image'} ({output.mib(image['size'])})")
        terminal.say(f"{one['worker']}: {verb} {output.mib(one['size'])} in {len(one['images'])} images")
