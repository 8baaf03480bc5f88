"""The fork server: it starts helpers quickly, in their own session, and never two for one VM."""

import os
import signal
import socket
import subprocess
import sys

import pytest

from tests.lib.faults import was_met
from tests.lib.support import PATIENCE_S, a_site, eventually, helpers, nurseries
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.helper import forkserver_client, launcher
from worker_service.helper.forkserver_client import address, connect
from worker_service.helper.jobs import VmJob


@pytest.fixture(scope="module")
def site(libvirt):
    with a_site(retry_delay_s=3600.0) as made:  # a helper that presses a button is there for as long
        yield made


@pytest.fixture
def warm(site):
    """Return the pid of the only fork server."""
    forkserver_client.ensure_running(site.worker.settings.data_root, site.worker.settings_argument)
    return the_only_one(site)


def the_only_one(site):
    """The pid of the fork server. A forked helper has the same command line until it has ended."""
    (pid,) = eventually(lambda: answers(site) and only(nurseries(site.settings)))
    return pid


def only(pids):
    return pids if len(pids) == 1 else None


def answers(site):
    try:
        with connect(site.worker.settings.data_root):
            return True
    except OSError:
        return False


def test_helper_of_a_fork_server_starts_the_next_one_there(site, bootchain):
    image = bootchain("nursery.raw", folder=site.images, seconds=2)
    site.start("first", image)
    site.wait("first", "halted")
    pid = the_only_one(site)
    uuid = site.start("second", image)["uuid"]
    site.wait("second", "running", "halted")
    assert site.wait("second", "halted")["disks"]["hda"]["saved_to"]
    log = (site.worker.store.folder(uuid) / "helper.log").read_text()
    assert "fetch images" in log
    assert "remove local disks" in log
    assert the_only_one(site) == pid


def test_only_one_fork_server_runs(site, warm):
    for _ in range(3):
        forkserver_client.ensure_running(site.worker.settings.data_root, site.worker.settings_argument)
    argv = [sys.executable, "-m", "worker_service.helper.forkserver", *site.worker.settings_argument]
    assert subprocess.run(argv, check=False, timeout=60).returncode == 0
    assert the_only_one(site) == warm


def test_helper_has_its_own_session_and_outlives_fork_server(site, bootchain, warm):
    image = bootchain("long.raw", folder=site.images, variant="spin")
    uuid = site.start("long", image)["uuid"]
    site.wait("long", "running")
    site.call("shutdown", name="long")  # a boot sector hears no power button: the helper goes on pressing it
    eventually(lambda: site.worker.store.read(uuid).tries)
    (pid,) = eventually(lambda: only(helpers(site.settings, uuid)))
    assert os.getsid(pid) not in (os.getsid(0), os.getsid(warm))
    os.kill(warm, signal.SIGKILL)
    eventually(lambda: not answers(site))
    assert helpers(site.settings, uuid) == [pid]
    site.call("destroy", name="long")


def test_fault_of_the_requester_meets_the_forked_helper(site, bootchain, warm, monkeypatch):
    image = bootchain("faulty.raw", folder=site.images)
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "_start_process", None)  # only the fork server starts it
        patch.setenv(ENVIRONMENT, "boot.before=kill")
        uuid = site.start("faulty", image)["uuid"]
        eventually(lambda: was_met(site, uuid, "boot.before=kill"))
    site.wait("faulty", "halted")
    assert (site.worker.store.folder(uuid) / "helper.log").read_text().count("failpoint") == 1
    assert the_only_one(site) == warm


def test_hung_fork_server_costs_time_and_no_helper(site, bootchain, warm):
    image = bootchain("hang.raw", folder=site.images)
    os.kill(warm, signal.SIGSTOP)
    try:
        uuid = site.start("hang", image)["uuid"]
        site.wait("hang", "halted")
    finally:
        os.kill(warm, signal.SIGCONT)
    with connect(site.worker.settings.data_root) as call:
        call.settimeout(PATIENCE_S)
        call.send(b"junk")
        assert call.recv(1) == b""  # the request that it got while it hung is answered, and no longer needed
    eventually(lambda: helpers(site.settings, uuid) == [])
    assert (site.worker.store.folder(uuid) / "helper.log").read_text().count("fetch images") == 1


def test_fork_server_with_older_code_is_not_used(site, bootchain, warm, monkeypatch):
    monkeypatch.setattr(forkserver_client, "version", lambda: "of tomorrow")
    site.start("newer", bootchain("newer.raw", folder=site.images))
    eventually(lambda: warm not in nurseries(site.settings))
    site.wait("newer", "halted")


def test_malformed_request_changes_nothing(site, warm):
    for junk in (b"junk", b"[]", b'{"uuid": 1}', b"x" * 4000):
        with connect(site.worker.settings.data_root) as call:
            call.send(junk)
    assert answers(site)
    assert the_only_one(site) == warm


def test_fork_server_of_another_user_is_not_used(site, tmp_path):
    """Any process can take an abstract name, so its owner must be the same user."""
    bound = address(tmp_path)
    listens, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setuid(65534)
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
                listener.bind(bound)
                listener.listen()
                os.write(writer, b"l")
                signal.pause()
        finally:
            os._exit(0)
    try:
        os.close(writer)
        assert os.read(listens, 1)
        with pytest.raises(PermissionError), connect(tmp_path):
            pass
        with open(os.devnull) as log:  # noqa: PTH123
            assert forkserver_client.request_fork(tmp_path, VmJob("uuid"), None, [log.fileno()] * 2) is False
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(listens)
