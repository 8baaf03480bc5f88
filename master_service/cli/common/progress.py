"""Show the progress of a VM on stderr while a command waits: a bar on a terminal, otherwise lines."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any, Final, Self

from master_service.cli.common import terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import vm_path
from master_service.cli.common.statuses import is_one_of, why_not
from master_service.cli.common.wording import distinct
from worker_service.contract.printable import printable

# A guest that powers itself off at once may never be reported as running.
UP: Final = frozenset({"running", "paused", "saving", "halted"})
OFF: Final = frozenset({"halted"})
_LOOK_EVERY_S: Final = 0.5
_STEP: Final = 10
"""Percent between two lines without a terminal."""
_COUNTED: Final = frozenset({"installing"})
"""Phases that count items; the others count bytes."""


def line(vm: Mapping[str, Any]) -> str:
    """Return status, phase and progress of a VM, and why it waits."""
    parts = [vm["name"], vm["status"]]
    if progress := vm["progress"]:
        parts.append(progress["phase"])
        if amount := _amount(progress):
            parts.append(amount)
    if vm["reason"]:
        parts.append(f"({vm['reason']})")
    return " ".join(parts)


def _amount(progress: Mapping[str, Any]) -> str:
    done, total = progress.get("done", 0), progress.get("total")
    if not total:
        return ""
    if progress["phase"] in _COUNTED:
        return f"{done} of {total}"
    return f"{100 * done // total // _STEP * _STEP}%"


class ProgressDisplay:
    """Shows the progress of one VM."""

    def __init__(self) -> None:
        self._last = ""
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich.console import Console  # noqa: PLC0415 - slow to import, and only for terminals
            from rich.progress import BarColumn, SpinnerColumn, TextColumn  # noqa: PLC0415 - as above
            from rich.progress import Progress as Bars  # noqa: PLC0415 - as above

            self._bar = Bars(
                SpinnerColumn(),
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TextColumn("{task.fields[amount]}", markup=False),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("", total=None, amount="")
            self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, vm: Mapping[str, Any]) -> None:
        """Show the VM as it is now."""
        if self._bar is not None:
            progress = vm["progress"] or {}
            self._bar.update(
                self._task,
                description=printable(line({**vm, "progress": None}) + (f" {progress['phase']}" if progress else "")),
                completed=progress.get("done", 0),
                total=progress.get("total"),
                amount=exact(progress),
            )
            return
        if (text := line(vm)) != self._last:
            self._last = text
            terminal.warn(text)


def exact(progress: Mapping[str, Any]) -> str:
    """Return `3 of 7`, or `120.0 of 512.0 MiB, 14.2 MiB/s, 28 s left`."""
    done, total = progress.get("done", 0), progress.get("total")
    if not total:
        return ""
    if progress["phase"] in _COUNTED:
        return f"{done} of {total}"
    rate = f", {progress['rate'] / 2**20:.1f} MiB/s" if progress.get("rate") else ""
    eta = f", {progress['eta_s']:.0f} s left" if progress.get("eta_s") else ""
    return f"{done / 2**20:.1f} of {total / 2**20:.1f} MiB{rate}{eta}"


def arrived(vm: Mapping[str, Any], until: frozenset[str]) -> bool:
    """Return whether the VM has reached one of these statuses.

    A VM that resumes is still paused at first. One that starts is still halted, or saves the disks of its last run. One
    whose kept disks a shutdown saves is still halted.
    """
    earlier = {"halted", "saving"} if len(until) > 1 else {"halted"}
    if vm["status"] in earlier and vm.get("awaited"):  # an older master does not say
        return False
    return is_one_of(vm, until) and not (vm["status"] == "paused" and vm["desired"] == "running" and len(until) > 1)


def _end_of(vm: Mapping[str, Any]) -> str:
    """Return the sentence for a VM that has failed, is no more, or whose command its worker refuses; "" for others."""
    if vm["status"] == "destroyed":
        return f"{vm['name']} was destroyed."
    if vm["status"] != "failed" and not vm.get("refused"):  # an older master does not say
        return ""
    return f"{vm['name']} is {vm['status']}: {vm['reason'] or vm['message'] or 'its worker gave no reason'}"


def follow(client: Client, vm: str, timeout_s: float, until: frozenset[str]) -> Mapping[str, Any]:
    """Wait until a VM has one of these statuses. Raises Failure when none can come any more, or the time is over."""
    ends = time.monotonic() + timeout_s
    with ProgressDisplay() as progress:
        while True:
            vm_now = client.get(vm_path(vm))
            # A VM whose start is refused for good is halted as before, and so would seem to have been started.
            given_up = vm_now.get("refused") and until != OFF
            if arrived(vm_now, until) and not given_up:
                return dict(vm_now)
            if why := _end_of(vm_now) or why_not(vm_now, until):
                raise Failure(why)
            vm = vm_now["uuid"]  # a name is free again, or another VM's, once it is destroyed
            progress.show(vm_now)
            if time.monotonic() >= ends:
                raise Failure(f"Not within {timeout_s:g} s, it continues: {line(vm_now)}", Exit.TIMEOUT)
            time.sleep(_LOOK_EVERY_S)


def block(client: Client, vm: str, verb: str, timeout_s: float) -> Mapping[str, Any]:
    """Request a verb for which the master itself waits, and return its answer. 0 means without waiting.

    Raises Failure when it is not done.
    """
    answer: Mapping[str, Any] = client.post(vm_path(vm, verb, timeout_s=f"{timeout_s:g}"), blocks_s=timeout_s)
    if answer["outcome"] not in (None, "done"):
        raise Failure(answer["message"])
    if timeout_s and not answer["done"]:
        problems = (problem["message"] for problem in answer["vmachine"]["problems"])
        raise Failure(" ".join(distinct(answer["message"], *problems)), Exit.TIMEOUT)
    return answer


def require_accepted(vm: Mapping[str, Any], limit_s: float) -> None:
    """Raise Failure if the worker of a changed VM was given time to accept the change, and has not done so."""
    if limit_s and vm["pending"]:
        raise Failure(
            f"{vm['worker']} did not accept the change of {', '.join(vm['pending'])} within {limit_s:g} s. It is sent "
            f"until it does; saltern show {vm['name']} tells.",
            Exit.TIMEOUT,
        )
