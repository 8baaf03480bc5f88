"""The hypervisors of the contract suite: `--hypervisor NAME` runs it for one, and without it for all that run here."""

import shutil
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from devstack.guests import build_bootchain
from devstack.hosts.suite import build_talking_demo
from tests.hypervisors import benches
from tests.lib.support import eventually, helpers_alive
from worker_service.helper import forkserver_client


def pytest_ignore_collect(collection_path, config):
    """Leave out the tests that start another host, where the suite runs for one hypervisor."""
    return True if config.option.hypervisor and collection_path.name == "test_xen.py" else None


def pytest_generate_tests(metafunc):
    if "bench" in metafunc.fixturenames:
        metafunc.parametrize("bench", benches.chosen(metafunc.config), indirect=True, scope="session")


@pytest.fixture(scope="session")
def bench(request):
    """A hypervisor with the world around it."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-of-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = benches.make(request.param, folder)
    yield made
    made.close()
    subprocess.run(["umount", "--lazy", folder / "small/data"], check=True)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def site(bench):
    """A worker for all tests: the start of its fork server takes long on an emulated host, as each helper without it.

    It looks at its VMs only when a test does.
    """
    with bench.worker("site", max_parallel_jobs=16, tick_s=3600.0) as made:
        data_root = made.worker.settings.data_root
        forkserver_client.ensure_running(data_root, made.worker.settings_argument)
        eventually(lambda: has_fork_server(data_root))
        yield made


def has_fork_server(data_root):
    """Return whether the fork server of a worker answers."""
    with suppress(OSError), forkserver_client.connect(data_root):
        return True
    return False


@pytest.fixture(scope="module")
def booted(bench, site, guest, request):
    """Start all guests of the module's `BOOTED` at once. `booted(name)` waits until one has counted its boot; its uuid.

    On an emulated host each guest waits for seconds in its firmware, and many wait as fast as one.
    """
    uuids = {}
    for name, (variant, given) in request.module.BOOTED.items():
        reply = site.start(name, guest(variant), **given)
        assert reply["success"], reply
        uuids[name] = reply["uuid"]

    def until_counted(name):
        reply = site.wait(name, "running", "failed to start")
        assert reply["status"] == "running", reply
        bench.until_counted(site, uuids[name])
        eventually(lambda: not helpers_alive(site.settings, uuids[name]))
        return uuids[name]

    return until_counted


@pytest.fixture(scope="session")
def demo(site, request):
    """The demo guest, which says what it sees. An emulated host cannot build it, and gets it by `--demo`."""
    path = site.images / "demo.qcow2"
    if given := request.config.option.demo:
        shutil.copyfile(given, path)
    else:
        build_talking_demo(path)
    return path


@pytest.fixture(scope="session")
def guest(site):
    """Make boot-sector guests: `guest("spin")` returns the path of one."""

    def make(variant, **options):
        path = site.images / f"{variant}{'-'.join(map(str, options.values()))}.raw"
        if not path.exists():
            build_bootchain(path, variant=variant, **options)
        return path

    return make
