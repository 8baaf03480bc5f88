"""How answers are printed: tables for people, JSON and bare names for programs; progress on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

if TYPE_CHECKING:
    from rich.console import Console

_WIDE: Final = 240
"""Columns where nobody looks: what is piped is not cut to a terminal's width."""

_STYLES: Final = {"running": "green", "failed": "red", "pending": "yellow", "paused": "cyan", "halted": "dim"}


class Format(StrEnum):
    """`-o`."""

    TABLE = "table"
    JSON = "json"
    NAME = "name"


def vms(found: Sequence[Mapping[str, Any]], form: Format) -> None:
    """Print VMs."""
    columns = ("NAME", "STATUS", "WANTED", "WORKER", "SEEN", "MESSAGE")
    rows = [
        (
            vm["name"],
            vm["status"],
            vm["wanted"],
            vm["worker"] or "-",
            age(vm["age_s"]),
            vm["reason"] or vm["message"],
        )
        for vm in found
    ]
    _print(found, form, "name", columns, rows)


def one_vm(vm: Mapping[str, Any], form: Format) -> None:
    """Print all about one VM."""
    if form is not Format.TABLE:
        vms([vm], Format.NAME) if form is Format.NAME else _json(vm)
        return
    rows = [(name, _plain(vm[name])) for name in vm if name not in ("spec", "problems")]
    rows += [(f"problem {problem['code']}", problem["message"]) for problem in vm["problems"]]
    rows += [(name, _plain(value)) for name, value in vm["spec"].items() if name != "name"]
    _table(("", ""), rows)


def workers(found: Sequence[Mapping[str, Any]], form: Format) -> None:
    """Print workers."""
    columns = ("WORKER", "STATE", "SEEN", "CPU FREE", "MEMORY FREE", "DISK FREE", "PROBLEM")
    rows = []
    for worker in found:
        has = worker["capacity"] or {}
        rows.append(
            (
                worker["id"],
                "reachable" if worker["reachable"] else f"unreachable since {worker['unreachable_since']}",
                age(worker["age_s"]),
                f"{has['cpu_free']} of {has['cpu_total']}" if has else "-",
                f"{has['mem_free']} of {has['mem_total']} MiB" if has else "-",
                f"{has['disk_free'] / 2**30:.1f} GiB" if has else "-",
                worker["problem"] or "",
            )
        )
    _print(found, form, "id", columns, rows)


def age(seconds: float | None) -> str:
    """How long ago, in one unit: `7s`, `3m`, `2h`, `5d`; `never` for None."""
    if seconds is None:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def progress_line(vm: Mapping[str, Any]) -> str:
    """Status, phase and percent of a VM on its way, and why it waits."""
    parts = [vm["name"], vm["status"]]
    if progress := vm["progress"]:
        parts.append(progress["phase"])
        if progress.get("total"):
            parts.append(f"{100 * progress.get('done', 0) // progress['total']}%")
    if vm["reason"]:
        parts.append(f"({vm['reason']})")
    return " ".join(parts)


class Progress:
    """One line on stderr that follows a VM: redrawn on a terminal, printed when it changes elsewhere."""

    def __init__(self) -> None:
        self._last = ""
        self._live: Any = None
        self._shown: AbstractContextManager[Any] = nullcontext()

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 - slow to import, and only for terminals

            self._live = Console(stderr=True).status("")
            self._shown = self._live
        self._shown.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._shown.__exit__(None, None, None)

    def show(self, vm: Mapping[str, Any]) -> None:
        """Show the VM as it is now."""
        line = progress_line(vm)
        if line == self._last:
            return
        self._last = line
        if self._live is not None:
            from rich.markup import escape  # noqa: PLC0415 - as above

            self._live.update(escape(line))
        else:
            sys.stderr.write(f"{line}\n")


def _print(
    found: Sequence[Mapping[str, Any]], form: Format, key: str, columns: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    match form:
        case Format.JSON:
            _json(found)
        case Format.NAME:
            sys.stdout.writelines(f"{entry[key]}\n" for entry in found)
        case Format.TABLE:
            _table(columns, rows)


def _json(value: object) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich import box, table  # noqa: PLC0415 - slow to import, and only for tables
    from rich.text import Text  # noqa: PLC0415 - as above

    made = table.Table(box=box.SIMPLE if any(columns) else None, show_header=any(columns), pad_edge=False)
    for index, column in enumerate(columns):
        made.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        # Text, not markup: a message may hold brackets.
        made.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
    _console().print(made)


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - slow to import, and only for tables

    return Console(highlight=False) if sys.stdout.isatty() else Console(highlight=False, width=_WIDE)


def _plain(value: object) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)
