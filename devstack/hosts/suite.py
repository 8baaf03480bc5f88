"""Run the contract suite of hypervisors within an emulated host."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from devstack.console import Trouble, say
from devstack.guests import build_demo, write_demo_config
from devstack.guests.build import CACHE
from devstack.hosts.machine import Machine
from devstack.layout import PYTHON, REPO

# Plugins of packages that a host does not get would be loaded by themselves.
_ENVIRONMENT = (
    *(f"PYTHONPATH={REPO}", "PYTHONDONTWRITEBYTECODE=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1"),
    "SALTERN_TEST_PATIENCE_S=600",  # each new process of Python takes half a minute on a busy machine
)
_PYTEST = ("pytest", "-p", "xdist", "-p", "no:cacheprovider", "-n0", "--sandbox", "none", "--color", "no", "-v")

_DEMO: Final = "/root/demo.qcow2"


def build_talking_demo(path: Path) -> None:
    """Write the demo guest as the suite needs it: it says which disc is in its drive, and its address."""
    build_demo(path, CACHE)
    write_demo_config(path, "qcow2", "demo.say=yes\n")


def command(hypervisor: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that runs `tests/hypervisors` for a hypervisor, in its host."""
    return python(*_PYTEST, "tests/hypervisors", "--hypervisor", hypervisor, *arguments)


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """Return the command that runs a module of this clone in a host."""
    words = (*_ENVIRONMENT, str(PYTHON), "-m", module, *arguments)
    return ("sh", "-c", f"cd {shlex.quote(str(REPO))} && exec env {shlex.join(words)}")


def run_suite(host: Machine, hypervisor: str, arguments: Sequence[str] = ()) -> int:
    """Run `tests/hypervisors` for a hypervisor, print its output as it comes, and return an exit code."""
    with tempfile.TemporaryDirectory(prefix="saltern-demo-") as folder:
        demo = Path(folder) / "demo.qcow2"
        build_talking_demo(demo)
        host.put(demo, _DEMO)
    try:
        for line in host.lines(command(hypervisor, ("--demo", _DEMO, *arguments))):
            say(line)
    except Trouble as err:
        say(str(err))
        return 1
    return 0
