"""Hooks for all tests (sandbox, worker processes, leftovers), and fixtures: libvirt, workers without Salt, guests."""

import shutil
import sys
import tempfile
from pathlib import Path

import hypothesis
import pytest

from devstack.guests import build_bootchain
from devstack.layout import Layout, Ports
from devstack.stack import Stack
from tests.lib import cost, sandbox, schedule
from tests.lib.host import Machine
from tests.lib.support import a_site

# A busy machine is slow, which is no property of the code.
hypothesis.settings.register_profile("saltern", deadline=None)
hypothesis.settings.load_profile("saltern")

LEFT = pytest.StashKey[list[str]]()
"""Leftovers, as the test processes have reported them."""
MOUNTS = pytest.StashKey[frozenset[str]]()


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew")
    parser.addoption("--cost", action="store_true", help="print what each file and the dearest tests cost")
    parser.addoption("--hypervisor", help="the one for which tests/hypervisors runs: kvm, xen, vbox or fake")
    parser.addoption("--demo", help="a demo guest that is built, for a host that cannot build it")
    parser.addoption("--sandbox", choices=sandbox.KINDS, default=sandbox.KINDS[0], help="kind of the tests' sandbox")


def pytest_cmdline_main(config):
    """Run pytest in a sandbox, and each worker process in one of its own."""
    kind = config.option.sandbox
    if sandbox.needed(kind) and not config.option.collectonly:
        return sandbox.run([sys.executable, "-m", "pytest", *config.invocation_params.args], kind)
    if sandbox.entered():
        config.option.tx = [f"{spec}//python={sandbox.python(kind)}" for spec in config.option.tx]
    return None


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if hasattr(config, "workerinput"):
        config.option.basetemp = None  # its controller's lies in another sandbox
    if config.option.cost and (sandbox.entered() or not sandbox.needed(config.option.sandbox)):
        cost.register(config)
    config.stash[LEFT] = []
    config.stash[MOUNTS] = sandbox.mounts()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    for item in items:
        schedule.mark(item)
    items.sort(key=lambda item: schedule.rank(item.nodeid))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    return schedule.Scheduling(config, log)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """Fail the run if tests have left something. All fixtures have ended by now."""
    config = session.config
    is_controller = bool(config.option.tx)
    if sandbox.entered() and not is_controller:
        config.stash[LEFT] += sandbox.leftovers(config.stash[MOUNTS])
    if hasattr(config, "workeroutput"):
        config.workeroutput["left"] = config.stash[LEFT]
    elif config.stash[LEFT] and not session.exitstatus:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    left = getattr(node, "workeroutput", {}).get("left", [])
    node.config.stash[LEFT] += [f"{node.gateway.id}: {line}" for line in left]


def pytest_terminal_summary(terminalreporter, config):
    if left := config.stash[LEFT]:
        terminalreporter.section("left behind by tests", red=True)
        terminalreporter.write_line("\n".join(left))


@pytest.fixture(scope="session")
def libvirt():
    """The libvirt of this test process."""
    var = Path(tempfile.mkdtemp(prefix="saltern-libvirt-", dir="/var/tmp"))
    stack = Stack(Layout(var=var, ports=Ports.free()))
    stack.start(["virtlogd", "libvirtd"])
    yield
    stack.stop()
    shutil.rmtree(var)


@pytest.fixture(scope="module")
def site(libvirt):
    """A worker for the test module."""
    with a_site() as made:
        yield made


@pytest.fixture
def fresh_site(libvirt):
    """A worker for the test."""
    with a_site() as made:
        yield made


@pytest.fixture(scope="module")
def machine():
    """A host with its own libvirt, which the test module may break, and a worker on it."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-host-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Machine(folder, max_parallel_jobs=16, tick_s=3600.0)  # the watcher looks when an event arrives
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bootchain(tmp_path_factory):
    """Make boot-sector guests: `bootchain("a.raw", seconds=3)` returns the path of one."""
    folder = tmp_path_factory.mktemp("guests")

    def make(name, folder=folder, **options):
        path = folder / name
        build_bootchain(path, **options)
        return path

    return make
