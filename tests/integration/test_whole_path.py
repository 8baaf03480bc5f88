"""The whole path through the real Salt: from a request to the master to a disk that boots again, and after crashes.

The guest counts its boots on its own disk. The saved counter equals the number of its lives, unless something was lost
or done twice.
"""

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from devstack.guests import build_bootchain, read_counter
from devstack.layout import PYTHON
from tests.lib.faults import call_with_fault
from tests.lib.support import PATIENCE_S, eventually, press_key, until_counted, virsh

VMS = "/api/v1/vmachines"
STEPS = [
    "fetch.chunk",
    "build.disk_made",
    "boot.before",
    "boot.started",
    "flatten.flattened",
    "save.staged",
    "clean.removed",
]


@pytest.fixture
def guest(stack):
    """Makes a guest image among the stack's images."""

    def make(name, **options):
        path = stack.layout.images / name
        build_bootchain(path, **options)
        return path

    return make


def body(stack, name, image, **more):
    saved = stack.layout.saved / f"{name}.qcow2"
    full = {"name": name, "hda_image": f"file://{image}", "hda_save_to": f"file://{saved}", "mem_size": 32}
    return {**full, **more}


def create(stack, name, image, **more):
    reply = stack.api("POST", VMS, body(stack, name, image, **more))
    assert reply.status == 201, reply.body
    assert reply.body["status"] == "pending"
    return reply.body["uuid"]


def wait(stack, name, *expected):
    """The master's answer about a VM once it has one of these statuses."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        reply = stack.api("GET", f"{VMS}/{name}")
        if reply.body.get("status") in expected:
            return reply.body
        assert time.monotonic() < deadline, f"{expected} not reached within {PATIENCE_S} s: {reply.body}"
        time.sleep(0.1)


def end(stack, name):
    """Let a guest of the variant `key` go off by itself, once it has counted its boot."""
    uuid = stack.api("GET", f"{VMS}/{name}").body["uuid"]
    until_counted(uuid)
    press_key(stack.layout.data_root / "vms" / uuid / "screen/vnc")


def boots(stack, name):
    return read_counter(stack.layout.saved / f"{name}.qcow2", "qcow2")


def test_create_run_halt_save_and_boot_again(stack, guest):
    create(stack, "first", guest("first.raw", variant="key"))
    running = wait(stack, "first", "running")
    assert running["worker"] == stack.layout.minion
    end(stack, "first")
    halted = wait(stack, "first", "halted")
    assert boots(stack, "first") == 1
    assert halted["real"] == "halted"
    eventually(lambda: stack.api("GET", f"{VMS}/first").body["desired"] == "halted")  # the guest's own will is followed
    create(stack, "second", stack.layout.saved / "first.qcow2")
    wait(stack, "second", "running")
    end(stack, "second")
    wait(stack, "second", "halted")
    assert boots(stack, "second") == 2
    assert stack.api("POST", f"{VMS}/first/start").ok  # it goes on from its save
    wait(stack, "first", "running")
    end(stack, "first")
    wait(stack, "first", "halted")
    assert boots(stack, "first") == 2


def test_image_over_http_boots(stack, guest, httpserver):
    image = guest("web.raw")
    httpserver.expect_request("/web.raw").respond_with_data(image.read_bytes(), headers={"ETag": '"1"'})
    create(stack, "web", image, hda_image=httpserver.url_for("/web.raw"))
    wait(stack, "web", "halted")
    assert boots(stack, "web") == 1


def test_suspend_resume_shutdown_destroy(stack, guest):
    uuid = create(stack, "verbs", guest("verbs.raw", variant="spin"))
    wait(stack, "verbs", "running")
    assert stack.api("POST", f"{VMS}/verbs/suspend").body["vmachine"]["status"] == "paused"
    assert "paused" in virsh("domstate", "verbs")
    assert stack.api("POST", f"{VMS}/verbs/resume").body["vmachine"]["status"] == "running"
    assert stack.api("DELETE", f"{VMS}/verbs").ok
    assert stack.api("GET", f"{VMS}/verbs").status == 404
    assert uuid not in virsh("list", "--all", "--uuid")
    assert not (stack.layout.saved / "verbs.qcow2").exists()
    assert not (stack.layout.data_root / "vms" / uuid).exists()


@pytest.mark.parametrize("step", STEPS)
def test_helper_killed_in_each_step_is_replaced(stack, guest, step):
    """The first helper is killed at the step. The watcher in the real minion finds the orphan and continues."""
    name = f"killed-{step.replace('.', '-').replace('_', '-')}"
    expected = json.dumps(body(stack, name, guest(f"{name}.raw")))
    done = call_with_fault(stack.layout.worker_toml, f"{step}=kill", "start", expected)
    assert json.loads(done.stdout)["success"], done.stdout + done.stderr
    deadline = time.monotonic() + PATIENCE_S
    while stack.worker_api("GET", f"/vmachines/status?name={name}").body["status"] != "halted":
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert boots(stack, name) == 1


def test_guest_that_halts_while_the_minion_is_dead(stack, guest):
    create(stack, "orphan", guest("orphan.raw", variant="key"))
    wait(stack, "orphan", "running")
    stack.kill("minion")
    end(stack, "orphan")
    deadline = time.monotonic() + PATIENCE_S
    while "shut off" not in virsh("domstate", "orphan"):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not (stack.layout.saved / "orphan.qcow2").exists()
    stack.start_part("minion")
    wait(stack, "orphan", "halted")
    assert boots(stack, "orphan") == 1


def test_polling_finds_changes_without_events(stack, guest):
    create(stack, "unheard", guest("unheard.raw", variant="key"))
    wait(stack, "unheard", "running")
    stack.kill("gate")
    end(stack, "unheard")
    deadline = time.monotonic() + PATIENCE_S
    while not (stack.layout.saved / "unheard.qcow2").exists():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert stack.api("GET", f"{VMS}/unheard").body["status"] != "halted"
    stack.start_part("gate")
    wait(stack, "unheard", "halted")
    assert boots(stack, "unheard") == 1


def test_restarted_master_service_goes_on(stack, guest):
    stack.kill("master")
    stack.start_part("master")
    assert stack.api("GET", f"{VMS}/first").body["status"] == "halted"
    create(stack, "after", guest("after.raw"))
    wait(stack, "after", "halted")


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({"hda_image": "ftp://host/a"}, 400, "ftp"),
        ({"name": "a b"}, 400, "name"),
        ({"mem_size": 10**7}, 507, "10000000"),
        ({"nonsense": 1}, 400, "nonsense"),
    ],
)
def test_bad_input_is_refused_by_the_master(stack, guest, changes, status, words):
    image = guest("bad.raw")
    reply = stack.api("POST", VMS, {**body(stack, "refused", image), **changes})
    assert reply.status == status, reply.body
    assert words in str(reply.body)
    assert stack.api("GET", f"{VMS}/refused").status == 404


def test_worker_errors_reach_the_user(stack, guest):
    uuid = create(stack, "wrong", guest("wrong.raw"), hda_image=f"file://{stack.layout.images}/none.raw")
    deadline = time.monotonic() + PATIENCE_S
    while "No such file" not in str(reply := stack.api("GET", f"{VMS}/wrong").body):
        assert time.monotonic() < deadline, reply
        time.sleep(0.2)
    assert stack.api("DELETE", f"{VMS}/wrong").ok
    assert not (stack.layout.data_root / "vms" / uuid).exists()


def test_command_line_runs_a_vm(stack, guest):
    environment = {
        **os.environ,
        "SALTERN_URL": stack.layout.master_url,
        "SALTERN_TOKEN_FILE": str(stack.layout.admin_token),
    }

    def saltern(*words):
        argv = [str(PYTHON.with_name("saltern")), *words]
        return subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)

    image, saved = guest("cli.raw"), stack.layout.saved / "cli.qcow2"
    words = ("--hda-image", f"file://{image}", "--hda-save-to", f"file://{saved}", "--mem-size", "32")
    made = saltern("create", "cli", *words)
    assert made.returncode == 0, made.stderr
    assert "cli" in saltern("list", "-o", "name").stdout.split()
    assert saltern("wait", "cli", "--for", "halted", "--timeout", f"{PATIENCE_S:g}").returncode == 0
    assert read_counter(saved, "qcow2") == 1
    assert saltern("destroy", "cli", "-y").returncode == 0
    missing = saltern("show", "cli")
    assert (missing.returncode, "Traceback" in missing.stderr) == (3, False)


def test_master_has_no_secret_in_its_log(stack):
    secrets = [path.read_text().strip() for path in (stack.layout.admin_token, stack.layout.api_secret)]
    for part in ("master", "salt-master", "salt-api", "minion", "worker-api"):
        text = Path(stack.layout.log(part)).read_text(errors="replace")
        assert not [secret for secret in secrets if secret in text]
