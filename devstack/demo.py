"""The VM of `make run`: created, watched and halted through the master's HTTP API, as a user would do it."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from devstack import http
from devstack.console import Ticker, Trouble, progress, say, table
from devstack.layout import PYTHON, REPO, Layout
from devstack.stack import LIBVIRT_URI, Stack

NAME: Final = "demo"
_RUN_S: Final = 240.0
_HALT_S: Final = 90.0
_POLL_S: Final = 0.3
_ENDS: Final = {"failed": 0.0, "halted": 15.0}
"""Statuses that are final, and the seconds that they must last before the wait ends."""
_VMS: Final = "/api/v1/vmachines"


def specification(layout: Layout) -> dict[str, Any]:
    """Return the specification of `demo`, the body of its POST."""
    return {
        "name": NAME,
        "hypervisor": "kvm",
        "cpu_count": 1,
        "mem_size": 256,
        "hda_image": f"file://{layout.images}/demo.qcow2",
        "hda_save_to": f"file://{layout.saved}/demo.qcow2",
    }


def bring_up(stack: Stack) -> dict[str, Any]:
    """Make sure that `demo` runs, and return its status at the master. Raises Trouble."""
    observed = _read(stack)
    if observed is not None and observed["status"] in {"running", "paused"}:
        return observed
    if observed is not None and observed["status"] in {"destroying", "saving"}:
        observed = _wait(stack, lambda vm: vm is None or vm["status"] == "halted", "to be destroyed or saved", _HALT_S)
    if observed is None:
        progress(f"creating the virtual machine {NAME}")
        _call(stack, "POST", "", specification(stack.layout))
    elif observed["status"] == "halted":
        progress(f"starting the virtual machine {NAME}, which was halted")
        _call(stack, "POST", f"/{NAME}/start")
    running = _wait(stack, lambda vm: vm is not None and vm["status"] in {"running", "paused"}, "to run", _RUN_S)
    assert running is not None  # noqa: S101  -- what was waited for
    return running


def halt(stack: Stack) -> None:
    """Shut `demo` down and wait until its disk is saved. A failure is only printed, because the disk stays."""
    try:
        observed = _read(stack)
        if observed is None or observed["status"] not in {"running", "paused", "saving"}:
            return
        progress(
            f"shutting {NAME} down; its disk is saved to {stack.layout.saved}/{NAME}.qcow2 (at most {_HALT_S:.0f} s)"
        )
        if observed["status"] != "saving":
            _call(stack, "POST", f"/{NAME}/shutdown")
        halted = _wait(stack, lambda vm: vm is None or vm["status"] == "halted", "to halt", _HALT_S)
        if halted is not None:
            progress(f"{NAME}: {halted['message']}")
    except (Trouble, OSError) as err:
        progress(f"{NAME} could not be halted; `make run` continues with it: {err}")


def describe(layout: Layout, vm: dict[str, Any]) -> None:
    """Print the VM, and how to look at it and stop it."""
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
    """Watch `demo` until `done`, and print each change. Raises Trouble if it fails or takes too long."""
    begun, shown, wait = time.monotonic(), "", Ticker(f"{NAME} {what}")
    changed = begun
    while True:
        observed = _read(stack)
        if done(observed):
            return observed
        line = _line(observed)
        if line != shown:
            progress(f"{NAME}: {line}")
            shown, changed = line, time.monotonic()
        if observed is not None and time.monotonic() - changed > _ENDS.get(observed["status"], timeout_s):
            raise Trouble(
                f"{NAME} is {observed['status']} ({observed['message']}): fix the cause, run "
                f"`.venv/bin/saltern destroy {NAME}`, and run this again. "
                f"The worker's log is {stack.layout.log('minion')}.",
            )
        if time.monotonic() - begun > timeout_s:
            raise Trouble(
                f"{NAME} took longer than {timeout_s:.0f} s {what} (now: {line}): "
                f"read the ends of {stack.layout.log('minion')} and {stack.layout.log('master')}.",
            )
        wait.tick(line)
        time.sleep(_POLL_S)


def _line(vm: dict[str, Any] | None) -> str:
    """Return status, progress and reason in a few words."""
    if vm is None:
        return "does not exist"
    progress = vm.get("progress") or {}
    done, total = progress.get("done"), progress.get("total")
    far = f"{progress.get('phase', '')} {100 * done // total}%".strip() if done and total else progress.get("phase")
    return ", ".join(str(word) for word in (vm["status"], far, vm.get("reason")) if word)


def _read(stack: Stack) -> dict[str, Any] | None:
    """Return the master's status of `demo`, or None if it does not exist."""
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
