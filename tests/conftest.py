"""What several kinds of tests share: the machine's libvirt, workers of their own without Salt around them, guests."""

import shutil
import tempfile
from pathlib import Path

import hypothesis
import pytest

from devstack.guests import build_bootchain
from devstack.layout import Layout, Ports
from devstack.stack import Stack
from tests.support import Site

# A busy machine is slow, which is no property of the code.
hypothesis.settings.register_profile("saltern", deadline=None)
hypothesis.settings.load_profile("saltern")


def pytest_addoption(parser):
    parser.addoption("--regenerate", action="store_true", help="write the golden files anew")


@pytest.fixture(scope="session")
def libvirt():
    """The machine's libvirt: used where it runs, else started, and then stopped again."""
    var = Path(tempfile.mkdtemp(prefix="saltern-libvirt-", dir="/var/tmp"))
    stack = Stack(Layout(var=var, ports=Ports.free()))
    stack.start(["virtlogd", "libvirtd"])
    yield
    stack.stop()
    shutil.rmtree(var)


@pytest.fixture(scope="module")
def site(libvirt):
    """A worker of the test module's own. Not in pytest's tmp_path: QEMU, another user, has to get there."""
    yield from _site()


@pytest.fixture
def fresh_site(libvirt):
    """A worker of the test's own."""
    yield from _site()


def _site():
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Site(folder)
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
