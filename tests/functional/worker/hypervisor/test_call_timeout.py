"""A frozen libvirtd: every caller gets an error in time, no VM counts as off, and all work continues afterwards."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from devstack.guests import read_counter
from devstack.layout import REPO
from tests.functional.worker import serving
from tests.lib.faults import standing
from tests.lib.host import Machine
from tests.lib.support import PATIENCE_S, eventually, sha256

LIMIT_S = 10.0
"""More than a boot takes on a busy machine."""
_ASK = """
import json, sys
from worker_service.operations import verbs
from worker_service.state.context import WorkerContext
print(json.dumps(verbs.answer(verbs.VERBS[sys.argv[2]], WorkerContext(sys.argv[1]), **json.loads(sys.argv[3]))))
"""


@pytest.fixture(scope="module")
def machine():
    folder = Path(tempfile.mkdtemp(prefix="saltern-host-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Machine(folder, libvirt_timeout_s=LIMIT_S, tick_s=0.5)
    yield made
    made.close()
    shutil.rmtree(folder)


@contextmanager
def frozen(machine):
    """Stop libvirtd for a while: it listens, and does not answer."""
    daemon = machine.stack.running("libvirtd")
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(daemon.pid, signal.SIGCONT)


def ask(site, verb, **parameters):
    """Call a verb in a process of its own, as `salt-call` does: it answers, and it ends."""
    argv = [sys.executable, "-c", _ASK, str(site.settings), verb, json.dumps(parameters)]
    done = subprocess.run(argv, cwd=REPO, capture_output=True, text=True, check=True, timeout=PATIENCE_S)
    return json.loads(done.stdout)


def get(url, verb):
    """The answer of the worker API to a verb."""
    return httpx2.get(f"{url}/vmachines/{verb}", headers={"Authorization": "Bearer all"}, timeout=PATIENCE_S)


def test_every_verb_answers_and_goes_on(machine, bootchain):
    site = machine.site
    for name, options in (("runs", {"variant": "spin"}), ("doomed", {"variant": "spin"}), ("ends", {"variant": "key"})):
        assert site.start(name, bootchain(f"{name}.raw", folder=site.images, **options))["success"]
        site.wait(name, "running")
    site.until_counted("ends")
    pid = machine.host.qemu("runs")
    known = site.call("status", name="runs")  # this process has a connection from before

    with frozen(machine):
        site.press("ends")
        for reply in (
            site.call("status", name="runs"),
            site.call("suspend", name="runs"),
            ask(site, "status", name="runs"),
            ask(site, "list"),
            ask(site, "resume", name="runs"),
        ):
            assert (reply["success"], reply["code"]) == (False, "hypervisor_unavailable"), reply
            assert "has not answered for 10 s" in reply["message"]
        # Steps without libvirt are done durably, and the rest when libvirt is back.
        assert ask(site, "modify", name="runs", hda_save_to=f"file://{site.saved_file('moved')}")["success"]
        destroyed = ask(site, "destroy", name="doomed", timeout_s=0.5)
        assert (destroyed["success"], destroyed["code"]) == (False, "timeout"), destroyed
        assert ask(site, "cache")["success"]
        site.watcher.look()  # sees nothing, says nothing, touches nothing

    reply = site.wait("runs", "running")
    assert (reply["uuid"], machine.host.qemu("runs")) == (known["uuid"], pid)
    site.until(lambda: site.call("status", name="doomed"), lambda reply: reply.get("code") == "not_found")
    ended = site.wait("ends", "halted")
    assert ended["halt_cause"] == "guest shut down"
    assert read_counter(site.saved_file("ends"), "qcow2") == 1
    assert ended["disks"]["hda"]["sha256"] == sha256(site.saved_file("ends"))
    assert site.call("destroy", name="runs")["success"]


@pytest.mark.parametrize("point", ["boot.before", "boot.started"])
def test_libvirtd_hangs_while_a_vm_starts(machine, bootchain, monkeypatch, point):
    """A helper held before or after the boot meets a libvirtd that does not answer: it gives up, and is replaced."""
    site, name = machine.site, point.replace(".", "-")
    image = bootchain(f"{name}.raw", folder=site.images)
    with monkeypatch.context() as patch:
        patch.setenv("SALTERN_FAILPOINT", f"{point}=stop")
        uuid = site.start(name, image)["uuid"]
    (held,) = eventually(lambda: standing(site.settings, uuid))
    with frozen(machine):
        os.kill(held, signal.SIGCONT)
        log = site.worker.store.folder(uuid) / "helper.log"
        eventually(lambda: "has not answered for 10 s" in log.read_text())
        eventually(lambda: not Path(f"/proc/{held}").exists())
        assert site.worker.store.read(uuid).phase in ("booting", "up")
    reply = site.wait(name, "halted", "failed to start", "failed to save")
    assert reply["status"] == "halted", site.logs()
    assert read_counter(site.saved_file(name), "qcow2") == 1
    assert site.leftovers() == set()


def test_watcher_and_api_continue_while_libvirtd_hangs(machine, bootchain):
    """The watcher notices the changes afterwards. The API of a worker without VMs says so in its list."""
    site = machine.site
    folder = site.folder.parent / "worker-api"
    folder.mkdir()
    with machine.watched(), serving.process(folder, machine.host.uri, libvirt_timeout_s=LIMIT_S) as url:
        assert site.start("watched", bootchain("watched.raw", folder=site.images, variant="key"))["success"]
        eventually(lambda: site.call("status", name="watched")["status"] == "running")
        site.until_counted("watched")
        with frozen(machine):
            site.press("watched")
            for _ in range(3):
                answer = get(url, "list")
                assert answer.status_code == 200, answer.text
                assert "has not answered" in answer.json()["capacity"]["drivers"]["kvm"]["problem"]
            assert get(url, "version").status_code == 200
            watcher_log = site.folder / "watcher.log"
            eventually(lambda: "has not answered for 10 s" in watcher_log.read_text())
        eventually(lambda: site.saved_file("watched").exists())
        eventually(lambda: get(url, "list").json()["capacity"]["drivers"]["kvm"]["problem"] == "")
    site.wait("watched", "halted")
    assert read_counter(site.saved_file("watched"), "qcow2") == 1
