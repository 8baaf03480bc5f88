"""Print answers: tables for users; JSON, YAML and bare names for programs."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from master_service.cli.common import terminal
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.wording import distinct
from worker_service.contract.printable import printable_lines

_STYLES: Final = {"running": "green", "failed": "red", "pending": "yellow", "paused": "cyan", "halted": "dim"}
JsonObject = Mapping[str, Any]


class Format(StrEnum):
    """`-o`."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    YAML = "yaml"
    NAME = "name"


@dataclass(frozen=True, kw_only=True, slots=True)
class Column:
    """One column of a list. `wide`: shown only with `-o wide`."""

    title: str
    cell: Callable[[JsonObject], str]
    wide: bool = False


def field(title: str, path: str, *, wide: bool = False) -> Column:
    """Return a column with a field: `name`, `spec.mem_size`."""
    return Column(title=title, cell=lambda entry: plain(at(entry, path)), wide=wide)


def listing(  # noqa: PLR0913 - how a list is printed
    found: Sequence[JsonObject],
    form: Format,
    columns: Sequence[Column],
    *,
    key: str,
    chosen: str | None = None,
    header: bool = True,
) -> None:
    """Print a list. `key`: the field that `-o name` prints; `chosen`: the value of `--columns`. Raises Failure."""
    match form:
        case Format.JSON:
            print_json(found)
        case Format.YAML:
            print_yaml(found)
        case Format.NAME:
            terminal.say_all(str(entry[key]) for entry in found)
        case Format.TABLE | Format.WIDE:
            if chosen:
                shown = [_column(word.strip(), columns, found) for word in chosen.split(",")]
            else:
                shown = [column for column in columns if form is Format.WIDE or not column.wide]
            rows = [[column.cell(entry) for column in shown] for entry in found]
            if not rows and terminal.is_interactive():
                terminal.warn("There are none.")
                return
            titles = [column.title for column in shown]
            terminal.table(titles, rows, header=header, wide=form is Format.WIDE, styles=_STYLES)


def _column(word: str, columns: Sequence[Column], found: Sequence[JsonObject]) -> Column:
    for column in columns:
        if word.lower() == column.title.lower():
            return column
    if found and at(found[0], word) is None and word.partition(".")[0] not in found[0]:
        titles = ", ".join(column.title.lower() for column in columns)
        raise Failure(
            f"There is no column {word!r}. There are {titles}; or name a field that -o json shows.", Exit.USAGE
        )
    return field(word.upper(), word)


def at(entry: JsonObject, path: str) -> Any:
    """Return a nested field such as `spec.mem_size`, or None."""
    value: Any = entry
    for part in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(part)
    return value


def _worker(vm: JsonObject) -> str:
    """Return a VM's worker, with why it gets no new VMs: `worker1 (drained)`."""
    states = vm.get("worker_states")
    return plain(vm["worker"]) + (f" ({', '.join(states)})" if states else "")


_WITH_CONSOLE: Final = frozenset({"installing", "running", "paused"})


def console_hint(vm: JsonObject) -> str:
    """Return the command that opens the console of a VM, or "" while it has none."""
    has_console = vm["status"] in _WITH_CONSOLE and "console" not in vm.get("lacks", ())
    return f"saltern console-url {vm['name']}" if has_console else ""


def _screen(vm: JsonObject) -> str:
    """Return the same for a list, with a note that a console shows pictures instead of VNC."""
    return f"{console_hint(vm)} (pictures)" if vm.get("console") == "screenshot" else console_hint(vm)


def _restarts(vm: JsonObject) -> str:
    """Return how often a VM that stops unexpectedly was started again lately: `3 of 5`, or "" for a healthy one."""
    return f"{vm['restarts']} of {vm['restart_limit']}" if vm.get("restarts") else ""


def _status(vm: JsonObject) -> str:
    """Return a VM's status, with its restarts: `running (restart 3 of 5)` is not healthy, and is not green."""
    return f"{vm['status']} (restart {_restarts(vm)})" if _restarts(vm) else plain(vm["status"])


VM_COLUMNS: Final = (
    field("NAME", "name"),
    Column(title="STATUS", cell=_status),
    field("DESIRED", "desired"),
    Column(title="WORKER", cell=_worker),
    Column(title="OBSERVED", cell=lambda vm: age(vm["age_s"])),
    Column(title="RESTARTS", cell=lambda vm: plain(_restarts(vm)), wide=True),
    field("OWNER", "owner", wide=True),
    field("UUID", "uuid", wide=True),
    field("CPUS", "spec.cpu_count", wide=True),
    Column(title="MEMORY", cell=lambda vm: f"{vm['spec']['mem_size']} MiB", wide=True),
    field("IMAGE", "spec.hda_image", wide=True),
    Column(title="VNC", cell=lambda vm: plain(_screen(vm)), wide=True),
    Column(title="PROTECTED", cell=lambda vm: "yes" if vm.get("protected") else "-", wide=True),
    Column(title="LABELS", cell=lambda vm: ",".join(f"{k}={v}" for k, v in vm["labels"].items()), wide=True),
    Column(title="MESSAGE", cell=lambda vm: vm["reason"] or vm["message"]),
)


def _state(worker: JsonObject) -> str:
    if not worker["enrolled"]:
        return "waiting"
    states = ["reachable" if worker["reachable"] else f"unreachable since {moment(worker['unreachable_since'])}"]
    states += [f"fenced since {moment(worker['fenced_at'])}"] if worker["fenced_at"] else []
    return ", ".join([*states, "drained"] if worker["draining"] else states)


def drivers_of(worker: JsonObject) -> str:
    """Return a worker's hypervisors: `kvm, xen (does not work)`. Older workers report their names alone."""
    drivers = worker.get("drivers") or {name: {} for name in (worker["capacity"] or {}).get("hypervisors", [])}
    return ", ".join(f"{name} (does not work)" if has.get("problem") else name for name, has in drivers.items()) or "-"


def _each(worker: JsonObject, name: str) -> str:
    """Return one capability of each hypervisor: `kvm: vnc, xen: -`."""
    drivers = worker.get("drivers") or {}
    return "; ".join(f"{each}: {capability(has.get(name))}" for each, has in drivers.items()) or "-"


def capability(value: object) -> str:
    """Return a value of a table of capabilities as the text of a cell."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) or "-" if isinstance(value, list) else plain(value)


WORKER_COLUMNS: Final = (
    field("WORKER", "id"),
    Column(title="STATE", cell=_state),
    Column(title="DRIVERS", cell=drivers_of),
    Column(title="OBSERVED", cell=lambda w: age(w["age_s"])),
    Column(title="CPU FREE", cell=lambda w: _of(w, "cpu_free", "cpu_total", "")),
    Column(title="MEMORY FREE", cell=lambda w: _memory(w["capacity"])),
    Column(title="DISK FREE", cell=lambda w: f"{w['capacity']['disk_free'] / 2**30:.1f} GiB" if w["capacity"] else "-"),
    Column(title="TAKEN BY", cell=lambda w: _taken(w["capacity"])),
    Column(title="KEPT DISKS", cell=lambda w: _kept(w["capacity"]), wide=True),
    field("VERSION", "version", wide=True),
    field("FINGERPRINT", "fingerprint", wide=True),
    Column(title="RUNS BY", cell=lambda w: _each(w, "acceleration"), wide=True),
    Column(title="CONSOLE", cell=lambda w: _each(w, "console"), wide=True),
    Column(title="NETWORKS", cell=lambda w: _each(w, "networks"), wide=True),
    Column(title="IMAGES", cell=lambda w: str(len((w["capacity"] or {}).get("images", []))), wide=True),
    Column(title="FOREIGN", cell=lambda w: str(len(w["foreign"])), wide=True),
    field("PROBLEM", "problem"),
)


def _of(worker: JsonObject, free: str, total: str, unit: str) -> str:
    has = worker["capacity"]
    return f"{has[free]} of {has[total]}{unit}" if has else "-"


def _taken(has: JsonObject | None) -> str:
    """Return the VMs that take the worker's processors and memory, by their state: `on 2, kept 1`."""
    return ", ".join(f"{state} {each['vms']}" for state, each in ((has or {}).get("taken") or {}).items()) or "-"


def _kept(has: JsonObject | None) -> str:
    """Return the VMs that are off and whose disks the worker keeps, and their space: `2 VMs, 12.5 MiB`."""
    vms = (has or {}).get("kept_vms") or 0
    return f"{vms} {'VM' if vms == 1 else 'VMs'}, {mib((has or {})['kept_bytes'])}" if vms else "-"


def _memory(has: JsonObject | None) -> str:
    return f"{has['mem_free'] / 1024:.1f} of {has['mem_total'] / 1024:.1f} GiB" if has else "-"


def one(entry: JsonObject, form: Format, *, key: str, inner: Sequence[str] = ()) -> None:
    """Print one entry in full. The fields inside those named by `inner` are rows too."""
    match form:
        case Format.JSON:
            print_json(entry)
        case Format.YAML:
            print_yaml(entry)
        case Format.NAME:
            terminal.say(str(entry[key]))
        case Format.TABLE | Format.WIDE:
            said = distinct(entry.get("reason", ""), entry.get("message", ""))
            hidden = (*inner, "problems") if entry.get("message") in said else (*inner, "problems", "message")
            rows = [(name, plain(value)) for name, value in entry.items() if name not in hidden]
            rows += [
                (f"problem {problem['code']}", problem["message"])
                for problem in entry.get("problems", ())
                if len(distinct(*said, problem["message"])) > len(said)
            ]
            for name in inner:
                rows += [(part, plain(value)) for part, value in (entry[name] or {}).items() if part not in entry]
            terminal.table(("", ""), rows, header=False, styles=_STYLES)


def done(vm: JsonObject, message: str, form: Format, more: str = "") -> None:
    """Print the result of a verb: a line for users, and `more` behind it; the VM for programs."""
    if form in (Format.TABLE, Format.WIDE):
        where = f" on {vm['worker']}" if vm["worker"] else ""
        short = f"{vm['name']} is {vm['status']}{where}."
        said = f"{message or short} {more}".strip()
        terminal.say(said)
        for text in distinct(said, *(problem["message"] for problem in vm["problems"]))[1:]:
            terminal.say(f"  {text}")
        return
    one(vm, form, key="name")


def print_dry_run(answer: JsonObject, form: Format) -> None:
    """Print the result of a dry run."""
    if form not in (Format.TABLE, Format.WIDE):
        one(answer if form is not Format.NAME else answer["vmachine"], form, key="name")
        require_fit(answer)
        return
    for change in answer["changes"]:
        if change["after"] not in (None, "", [], {}) or change["before"] not in (None, "", [], {}):
            was = "" if change["before"] is None else f"{plain(change['before'])} -> "
            terminal.say(f"  {change['field']}: {was}{plain(change['after'])}")
    terminal.say(f"Nothing was changed. The result would be: {answer['message']}.")
    if answer["command"] in ("start", "shutdown"):
        vm = answer["vmachine"]
        texts = [vm["starts_from"] if answer["command"] == "start" else "", vm["when_it_halts"]]
        if new := [text for text in texts if text and text.rstrip(".") not in answer["message"]]:
            terminal.say(" ".join(new))
    _print_plan(answer)


def _print_plan(answer: JsonObject) -> None:
    """Print the images of the worker's own plan. Raises Failure if it would refuse the start."""
    for image in (answer.get("plan") or {}).get("images", ()):
        where = "is cached" if image["cached"] else f"is to be fetched, {mib(image['size'])}"
        terminal.say(f"  {image['disk']}: {image['uri']} {where}")
    require_fit(answer)


def require_fit(answer: JsonObject) -> None:
    """Raise Failure if the worker would refuse the start of this dry run."""
    plan = answer.get("plan")
    if plan and plan["fits"] is False:
        raise Failure(f"{plan['worker']} would refuse this start.")


def age(seconds: float | None) -> str:
    """Return an age in one unit: `7s`, `3m`, `2h`, `5d`; `never` for None."""
    if seconds is None:
        return "never"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{int(seconds // size)}{unit}"
    return f"{int(seconds)}s"


def moment(text: str | None) -> str:
    """Return a time of the API to the second, UTC: `2026-01-31 08:15:00`."""
    return text.replace("T", " ")[:19] if text else "-"


def mib(size: int | None) -> str:
    """Return bytes as MiB."""
    return "-" if size is None else f"{size / 2**20:.1f} MiB"


def plain(value: object) -> str:
    """Return a value as the text of a cell."""
    if value in (None, "", [], {}):
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def print_json(value: object) -> None:
    """Print JSON."""
    terminal.write(json.dumps(value, indent=2) + "\n")


def print_yaml(value: object) -> None:
    """Print YAML."""
    terminal.write(yaml_of(value))


def yaml_of(value: object) -> str:
    """Return a value as YAML, in its own order. Characters that are not printable are escaped as YAML does it."""
    import yaml  # noqa: PLC0415 - slow to import, and only for YAML

    dumped: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True)
    if printable_lines(dumped) != dumped:
        dumped = yaml.safe_dump(value, sort_keys=False)
    return dumped
