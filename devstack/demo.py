"""The VM that `make run` shows: created, watched and halted through the master's HTTP API, as any user would."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from devstack import http
from devstack.console import Ticker, Trouble, say, table, tell
from devstack.layout import PYTHON, REPO, Layout
from devstack.stack import LIBVIRT_URI, Stack

NAME: Final = "demo"
_RUN_S: Final = 240.0
_HALT_S: Final = 90.0
_POLL_S: Final = 0.3
_ENDS: Final = {"failed": 0.0, "halted": 15.0}
"""Statuses that nothing leaves by itself, and how many seconds they last before that is believed."""
_VMS: Final = "/api/v1/vmachines"


def specification(layout: Layout) -> dict[str, Any]:
    """What `demo` is: the body of its POST."""
    return {
        "name": NAME,
        "hypervisor": "kvm",
        "cpu_count": 1,
        "mem_size": 256,
        "hda_image": f"file://{layout.images}/demo.qcow2",
        "hda_save_to": f"file://{layout.saved}/demo.qcow2",
    }


def bring_up(stack: Stack) -> dict[str, Any]:
    """Make sure that `demo` runs; returns what the master says of it. Raises Trouble."""
    seen = _look(stack)
    if seen is not None and seen["status"] in {"running", "paused"}:
        return seen
    if seen is not None and seen["status"] in {"destroying", "saving"}:
        seen = _wait(stack, lambda vm: vm is None or vm["status"] == "halted", "to be out of the way", _HALT_S)
    if seen is None:
        tell(f"creating the virtual machine {NAME}")
        _call(stack, "POST", "", specification(stack.layout))
    elif seen["status"] == "halted":
        tell(f"starting the virtual machine {NAME}, which was halted")
        _call(stack, "POST", f"/{NAME}/start")
    running = _wait(stack, lambda vm: vm is not None and vm["status"] in {"running", "paused"}, "to run", _RUN_S)
    assert running is not None  # noqa: S101  -- what was waited for
    return running


def halt(stack: Stack) -> None:
    """Shut `demo` down and wait until its disk is saved. Never fails: what did not work is told, nothing is lost."""
    try:
        seen = _look(stack)
        if seen is None or seen["status"] not in {"running", "paused", "saving"}:
            return
        tell(f"shutting {NAME} down; its disk is saved to {stack.layout.saved}/{NAME}.qcow2 (at most {_HALT_S:.0f} s)")
        if seen["status"] != "saving":
            _call(stack, "POST", f"/{NAME}/shutdown")
        halted = _wait(stack, lambda vm: vm is None or vm["status"] == "halted", "to halt", _HALT_S)
        if halted is not None:
            tell(f"{NAME}: {halted['message']}")
    except (Trouble, OSError) as err:
        tell(f"{NAME} was left as it is, and `make run` takes it up again: {err}")


def describe(layout: Layout, vm: dict[str, Any]) -> None:
    """Show the VM, and what to do with it."""
    names = ("name", "status", "worker", "message")
    say()
    say(table([tuple(name.upper() for name in names), tuple(str(vm.get(name) or "-") for name in names)]))
    say(
        f"""
Look     {layout.worker_url}/      the worker's page; its token is in {layout.worker_token}
         {layout.master_url}/docs  the master's API; its token is in {layout.admin_token}
         {PYTHON.with_name("saltern").relative_to(REPO)} list
Log in   virsh -c {LIBVIRT_URI} console {NAME}    (Enter wakes it, Ctrl+] leaves)
Stop     make stop                                 (saves the disk of {NAME} to {layout.saved}/{NAME}.qcow2)"""
    )


def _wait(
    stack: Stack,
    done: Callable[[dict[str, Any] | None], bool],
    what: str,
    timeout_s: float,
) -> dict[str, Any] | None:
    """Watch `demo`, printing each change, until `done`. Raises Trouble when it fails or the time is over."""
    begun, shown, wait = time.monotonic(), "", Ticker(f"{NAME} {what}")
    changed = begun
    while True:
        seen = _look(stack)
        if done(seen):
            return seen
        line = _line(seen)
        if line != shown:
            tell(f"{NAME}: {line}")
            shown, changed = line, time.monotonic()
        if seen is not None and time.monotonic() - changed > _ENDS.get(seen["status"], timeout_s):
            raise Trouble(
                f"{NAME} is {seen['status']} ({seen['message']}): put that right, `.venv/bin/saltern destroy {NAME}`, "
                f"and run this again; the worker's log is {stack.layout.log('minion')}.",
            )
        if time.monotonic() - begun > timeout_s:
            raise Trouble(
                f"{NAME} took longer than {timeout_s:.0f} s {what} (now: {line}): "
                f"read the ends of {stack.layout.log('minion')} and {stack.layout.log('master')}.",
            )
        wait.tick(line)
        time.sleep(_POLL_S)


def _line(vm: dict[str, Any] | None) -> str:
    """Status, why, and how far, in a few words."""
    if vm is None:
        return "not there"
    progress = vm.get("progress") or {}
    done, total = progress.get("done"), progress.get("total")
    far = f"{progress.get('phase', '')} {100 * done // total}%".strip() if done and total else progress.get("phase")
    return ", ".join(str(word) for word in (vm["status"], far, vm.get("reason")) if word)


def _look(stack: Stack) -> dict[str, Any] | None:
    """What the master says of `demo`; None where it knows none."""
    reply = stack.api("GET", f"{_VMS}/{NAME}")
    if reply.status == 404:
        return None
    return _checked(stack, reply)


def _call(stack: Stack, method: str, path: str, body: object = None) -> dict[str, Any]:
    return _checked(stack, stack.api(method, _VMS + path, body))


def _checked(stack: Stack, reply: http.Reply) -> dict[str, Any]:
    if not reply.ok or not isinstance(reply.body, dict):
        detail = reply.body.get("detail", reply.body) if isinstance(reply.body, dict) else reply.body
        raise Trouble(
            f"The master answered {reply.status} ({str(detail)[:300]}): read the end of {stack.layout.log('master')}."
        )
    return reply.body
