"""The verbs of the Makefile: `python3 -m devstack VERB`."""

from __future__ import annotations

import argparse
import fcntl
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from devstack import bootstrap, demo, more_workers, web_assets
from devstack.console import Trouble, fail, progress, say, table
from devstack.fresh import test_fresh
from devstack.layout import PYTHON, REPO, Layout
from devstack.stack import Stack, parts_of

TEST_PROCESSES: Final = "4"
"""Processes of pytest: two for each of two cores, because most tests wait for guests and daemons most of the time."""
UNIT_TEST_PROCESSES: Final = "2"


def run(layout: Layout, _: Sequence[str]) -> int:
    """Set everything up, start it, and bring up the VM `demo` (HYPERVISOR=xen or vbox adds a worker, in emulation)."""
    with alone(layout):
        more = dict.fromkeys((*more_workers.chosen(os.environ), *more_workers.recorded(layout)))
        setup(layout, ())
        layout = more_workers.patient(layout, more)
        stack = Stack(layout, parts=[*parts_of(layout), *more_workers.parts_of(layout, more)])
        started = stack.start()
        guest_firewall(layout, "apply")
        progress(
            f"data of the worker: {layout.data_root}; logs: {layout.var}/log" if started else "all parts run already"
        )
        demo.describe(layout, demo.bring_up(stack))
        more_workers.describe(layout, more)
    return 0


def stop(layout: Layout, _: Sequence[str]) -> int:
    """Shut `demo` down, which saves its disk, and stop what `run` started."""
    with alone(layout):
        stack = whole_stack(layout)
        if stack.running("master"):
            demo.halt(stack)
        stopped = stack.stop()
        guest_firewall(layout, "remove")
        progress(f"stopped: {', '.join(stopped)}" if stopped else "no part of the stack was running")
    return 0


def status(layout: Layout, _: Sequence[str]) -> int:
    """Show the state of each part."""
    say(table([("PART", "STATE", "DETAIL"), *whole_stack(layout).status()]))
    return 0


def setup(layout: Layout, _: Sequence[str]) -> int:
    """Install what is needed: Debian packages, .venv, the demo guest's image, JavaScript for pages."""
    bootstrap.prepare_tools(layout)
    web_assets.fetch(layout)
    bootstrap.make_demo_image(layout)
    return 0


def test(layout: Layout, arguments: Sequence[str]) -> int:
    """Install what is needed, run all tests, and print the coverage of pure code (ARGS='...' goes to pytest)."""
    setup(layout, ())
    tested = _tool("pytest", "-n", TEST_PROCESSES, *arguments)
    return tested if tested or arguments else pure_coverage(layout, ())


def test_unit(layout: Layout, arguments: Sequence[str]) -> int:
    """Run the tests of pure code and the scenarios: one minute, without root, services or network."""
    bootstrap.prepare_tools(layout)
    return _tool("pytest", "-n", UNIT_TEST_PROCESSES, "tests/unit", "tests/scenarios", *arguments)


def test_slow(layout: Layout, arguments: Sequence[str]) -> int:
    """Run the tests that take minutes: software in a real Debian, from its mirror."""
    setup(layout, ())
    return _tool("pytest", "-n", "2", "-m", "slow", "--sandbox", "online", *arguments)


def test_hosts(layout: Layout, arguments: Sequence[str]) -> int:
    """Run the test in which the SLS turn a bare Debian host with its own systemd into a worker and a master."""
    setup(layout, ())
    return _tool("pytest", "-m", "hosts", "--sandbox", "none", *arguments)


def test_xen(layout: Layout, arguments: Sequence[str]) -> int:
    """Run the contract suite for Xen in an emulated dom0: 15 to 20 minutes, and two for its image."""
    from devstack.hosts import build_xen  # noqa: PLC0415 - what it needs is there after `setup`

    setup(layout, ())
    build_xen(layout.var / "cache/hosts")  # the tests cannot: they reach no mirror
    return _tool("pytest", "-n0", "-m", "xen", "tests/hypervisors/test_xen.py", *arguments)


def test_vbox(layout: Layout, arguments: Sequence[str]) -> int:
    """Run the contract suite for VirtualBox in an emulated host of Debian unstable, which moves: by hand, an hour."""
    from devstack.hosts.suite import run_suite  # noqa: PLC0415 - what it needs is there after `setup`
    from devstack.hosts.vbox_host import vbox_host  # noqa: PLC0415

    setup(layout, ())
    with vbox_host(layout.var / "hosts/test-vbox", cache=layout.var / "cache/hosts") as host:
        say(host.run(["sh", "-c", "VBoxManage --version; uname -r"]).stdout)
        return run_suite(host, "vbox", arguments)


def coverage(layout: Layout, arguments: Sequence[str]) -> int:
    """Run all tests, and print the lines and branches that they do not reach, in all processes."""
    setup(layout, ())
    data = layout.var / "coverage"
    shutil.rmtree(data, ignore_errors=True)
    data.mkdir(parents=True)
    os.environ["COVERAGE_FILE"] = str(data / "data")  # for the processes in every folder
    tested = _tool("coverage", "run", "-m", "pytest", "-n", TEST_PROCESSES, *arguments)
    return _tool("coverage", "combine", "-q") or _tool("coverage", "report") or tested


def pure_coverage(layout: Layout, _: Sequence[str]) -> int:
    """Run the unit tests of the pure code, and fail unless they reach each of its lines and branches."""
    bootstrap.prepare_tools(layout)
    return _tool("python", "-m", "tests.lib.pure_coverage")


def check(layout: Layout, _: Sequence[str]) -> int:
    """Check the source with ruff and mypy."""
    bootstrap.prepare_tools(layout)
    codes = [_tool("ruff", "check", "."), _tool("ruff", "format", "--check", "."), _tool("mypy")]
    return max(codes)


def bench_worker(layout: Layout, _: Sequence[str]) -> int:
    """Compare a worker with the tools that it builds on, and print the table (ten minutes)."""
    setup(layout, ())
    bootstrap.install_packages(layout, "virtinst", "curl")  # the tools to compare it with
    return subprocess.run([PYTHON, "-m", "tests.bench.worker"], cwd=REPO, check=False).returncode


def format_(layout: Layout, _: Sequence[str]) -> int:
    """Format the source with ruff."""
    bootstrap.prepare_tools(layout)
    return max(_tool("ruff", "check", "--fix", "--exit-zero", "."), _tool("ruff", "format", "."))


def lock(layout: Layout, _: Sequence[str]) -> int:
    """Update the lock files from pyproject.toml."""
    bootstrap.prepare_tools(layout)
    bootstrap.write_lock(layout)
    return 0


def bench_master(layout: Layout, _: Sequence[str]) -> int:
    """Measure the master: 10,000 VMs, the way through a real Salt, 20 real minions (ten minutes)."""
    setup(layout, ())
    return subprocess.run([PYTHON, "-m", "tests.bench.master"], cwd=REPO, check=False).returncode


def help_(_: Layout, __: Sequence[str]) -> int:
    """Show this list."""
    say("make TARGET, or the same without make: python3 -m devstack TARGET\n")
    for name, verb in VERBS.items():
        say(f"  {name:14}{verb.__doc__}")
    return 0


VERBS: Final[dict[str, Callable[[Layout, Sequence[str]], int]]] = {
    "run": run,
    "stop": stop,
    "status": status,
    "setup": setup,
    "test": test,
    "test-unit": test_unit,
    "test-slow": test_slow,
    "test-hosts": test_hosts,
    "test-vbox": test_vbox,
    "test-xen": test_xen,
    "test-fresh": test_fresh,
    "coverage": coverage,
    "coverage-pure": pure_coverage,
    "check": check,
    "bench-worker": bench_worker,
    "format": format_,
    "lock": lock,
    "bench-master": bench_master,
    "help": help_,
}


def whole_stack(layout: Layout) -> Stack:
    """Return the stack with all parts that earlier commands started."""
    return Stack(layout, parts=[*parts_of(layout), *more_workers.parts_of(layout, more_workers.recorded(layout))])


def guest_firewall(layout: Layout, action: str) -> None:
    """Apply or remove the firewall of guests, which belongs to the machine. If that fails, only say so."""
    if not PYTHON.exists():
        return
    firewall = (str(PYTHON), "-m", "worker_service.hypervisor.guest_firewall")
    argv = [*firewall, "--settings", str(layout.worker_toml), action]
    done = subprocess.run(argv, cwd=REPO, check=False, capture_output=True, text=True)
    if done.returncode != 0:
        progress(f"the firewall of guests: {(done.stderr or done.stdout).strip()}")


@contextmanager
def alone(layout: Layout) -> Iterator[None]:
    """Keep two of these commands from starting the same part twice. Raises Trouble."""
    layout.var.mkdir(parents=True, exist_ok=True)
    with (layout.var / ".lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Trouble("Another `make run` or `make stop` is running in this clone: wait until it ends.") from None
        yield


def _tool(name: str, *arguments: str) -> int:
    # An interrupt also reaches the tool, which cleans up: pytest ends its VMs. The tool would inherit SIG_IGN.
    before = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return subprocess.run([PYTHON.with_name(name), *arguments], cwd=REPO, check=False).returncode
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb on the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="devstack", description="The development stack of Saltern.")
    parser.add_argument("verb", nargs="?", default="help", choices=VERBS, metavar="VERB", help=", ".join(VERBS))
    chosen, rest = parser.parse_known_args(argv)
    if rest and not (chosen.verb.startswith("test") or chosen.verb == "coverage"):
        parser.error(f"{chosen.verb} takes no arguments: {' '.join(rest)}")
    try:
        return VERBS[chosen.verb](Layout(), rest)
    except Trouble as trouble:
        return fail(trouble)
    except BrokenPipeError:  # `make run | head`: the reader has gone, so print no more, not even at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return fail(Trouble(f"Interrupted: `make {chosen.verb}` continues from here, `make stop` stops all parts."))


if __name__ == "__main__":
    sys.exit(main())
