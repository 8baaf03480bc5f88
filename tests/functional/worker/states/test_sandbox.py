"""The whole life of a VM with the restrictions of the worker API's unit, which its helpers inherit.

systemd need not run here: other tools take away the same mounts and capabilities.
"""

import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devstack import http
from devstack.guests import read_counter
from devstack.layout import Ports
from tests.lib.support import PATIENCE_S

REPO = Path(__file__).parents[4]
UNIT = (REPO / "states/worker/files/saltern-worker-api.service").read_text()


def sandbox(writable, command):
    """A command for which all is read-only but these folders, with the unit's capabilities and no way to new ones."""
    mounts = ["mount --make-rprivate /"]
    mounts += ["findmnt -rno TARGET | grep -vE '^/(dev|proc|sys)(/|$)' | xargs -n1 mount -o remount,bind,ro"]
    mounts += [f"mount --bind {folder} {folder} && mount -o remount,bind,rw {folder}" for folder in writable]
    words = re.search(r"^CapabilityBoundingSet=(.+)$", UNIT, re.MULTILINE)[1].split()
    capabilities = ",".join(["-all", *(f"+{word.removeprefix('CAP_').lower()}" for word in words)])
    assert "NoNewPrivileges=yes" in UNIT
    confined = f"exec setpriv --no-new-privs --bounding-set={capabilities} {command}"
    return ["unshare", "--mount", "sh", "-ec", "\n".join([*mounts, confined])]


@pytest.fixture
def worker_api(site):
    """Calls the worker API, which runs in its sandbox."""
    port = Ports.free().worker
    (site.folder / "salt").mkdir()
    (site.folder / "salt/minion").write_text(
        f"id: w1\nroot_dir: {site.folder}/salt\nmodule_dirs: [{REPO}/states]\nlog_file: salt.log\n"
        f"saltern: {{settings: {site.settings}}}\n"
    )
    (site.folder / "tokens").write_text(f"{hashlib.sha256(b'me').hexdigest()} read,operate me\n")
    with site.settings.open("a") as settings:
        settings.write(
            f'[api]\nport = {port}\ntokens_file = "{site.folder}/tokens"\nminion_config = "{site.folder}/salt/minion"\n'
        )
    command = f"{sys.executable} -m worker_service.api --settings {site.settings}"
    writable = ("/tmp", site.folder / "data", site.saved)
    with (site.folder / "worker-api.log").open("wb") as log:
        running = subprocess.Popen(sandbox(writable, command), cwd=REPO, stdout=log, stderr=log)

    def call(path):
        headers = {"Authorization": "Bearer me"}
        return http.call("GET", f"http://127.0.0.1:{port}{path}", headers=headers, timeout_s=30).body

    yield call
    running.terminate()
    running.wait()


def until(ask, done):
    """Ask until an answer is the one that is waited for."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        try:
            answer = ask()
        except OSError:  # not listening yet
            answer = None
        if answer and done(answer):
            return answer
        assert time.monotonic() < deadline, answer
        time.sleep(0.2)


def test_vm_lives_and_is_saved_in_the_sandbox(site, worker_api, bootchain):
    until(lambda: worker_api("/healthz"), lambda answer: answer["status"] == "ok")
    image, saved = bootchain("boxed.raw", folder=site.images), site.saved_file("boxed")
    reply = worker_api(f"/vmachines/start?name=boxed&mem_size=32&hda_image=file://{image}&hda_save_to=file://{saved}")
    assert reply["success"], reply
    until(lambda: worker_api("/vmachines/status?name=boxed"), lambda answer: answer["status"] == "halted")
    assert read_counter(saved, "qcow2") == 1


def test_sandbox_takes_rights_away(tmp_path):
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    done = subprocess.run(
        sandbox([inside], f"sh -c 'touch {inside}/a; touch {outside}'"), capture_output=True, text=True, check=False
    )
    assert (inside / "a").exists(), done.stderr
    assert not outside.exists()
