"""Run the contract suite of hypervisors within an emulated host."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from devstack.console import Trouble, say
from devstack.hosts.machine import Machine
from devstack.layout import PYTHON, REPO

# Plugins of packages that a host does not get would be loaded by themselves.
_ENVIRONMENT = (f"PYTHONPATH={REPO}", "PYTHONDONTWRITEBYTECODE=1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1")
_PYTEST = ("-m", "pytest", "-p", "xdist", "-p", "no:cacheprovider", "-n0", "--sandbox", "none", "--color", "no", "-v")


def command(hypervisor: str, arguments: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the command that runs `tests/hypervisors` for a hypervisor, in its host."""
    suite = (str(PYTHON), *_PYTEST, "tests/hypervisors", "--hypervisor", hypervisor, *arguments)
    return ("sh", "-c", f"cd {shlex.quote(str(REPO))} && exec env {shlex.join((*_ENVIRONMENT, *suite))}")


def run_suite(host: Machine, hypervisor: str, arguments: Sequence[str] = ()) -> int:
    """Run `tests/hypervisors` for a hypervisor, print its output as it comes, and return an exit code."""
    try:
        for line in host.lines(command(hypervisor, arguments)):
            say(line)
    except Trouble as err:
        say(str(err))
        return 1
    return 0
