"""What several kinds of tests share: the machine's libvirt, workers of their own without Salt around them, guests."""

import fcntl
import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from devstack.console import tell
from devstack.guests import build_bootchain
from devstack.layout import Layout, Ports
from devstack.stack import Stack
from tests.host import Machine
from tests.support import a_site

# A busy machine is slow, which is no property of the code.
hypothesis.settings.register_profile("saltern", deadline=None)
hypothesis.settings.load_profile("saltern")


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def libvirt_turn():
    """Test runs take turns: the machine has one libvirt, and the tests' VMs have the same names in each run."""
    with Path("/run/saltern-tests.lock").open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("another test run uses this machine's libvirt: waiting for its end")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="session")
def libvirt(libvirt_turn):
    """The machine's libvirt: used where it runs, else started, and then stopped again."""
    var = Path(tempfile.mkdtemp(prefix="saltern-libvirt-", dir="/var/tmp"))
    stack = Stack(Layout(var=var, ports=Ports.free()))
    stack.start(["virtlogd", "libvirtd"])
    yield
    stack.stop()
    shutil.rmtree(var)


@pytest.fixture(scope="module")
def site(libvirt):
    """A worker of the test module's own."""
    with a_site() as made:
        yield made


@pytest.fixture
def fresh_site(libvirt):
    """A worker of the test's own."""
    with a_site() as made:
        yield made


@pytest.fixture(scope="module")
def machine():
    """A host with a libvirt of its own, which the test module may break, and a worker on it."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-host-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Machine(folder, seats=16, tick_s=3600.0)  # a watcher there looks where it is told of something
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def bootchain(tmp_path_factory):
    """Makes boot-sector guests: `bootchain("a.raw", seconds=3)` is the path of one."""
    folder = tmp_path_factory.mktemp("guests")

    def make(name, folder=folder, **options):
        path = folder / name
        build_bootchain(path, **options)
        return path

    return make
