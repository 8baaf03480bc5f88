"""Software in real guests: the demo guest with the agent, its seed in a drive, its reports in a file."""

import json
import os
from datetime import timedelta

import pytest

from devstack.guests import build_demo, read_demo_boots, read_demo_package
from devstack.guests.build import CACHE
from tests.lib.console import PROMPT, Console
from tests.lib.faults import FAULTS, faults_until_met, was_met
from tests.lib.support import PATIENCE_S, a_site, eventually, helpers, virsh
from worker_service.guest_agent.report import parse
from worker_service.guest_agent.seed_iso import iso
from worker_service.helper import step_loop
from worker_service.state.lifecycle import Step, next_step
from worker_service.state.observation import read_readiness

LONG = 600
"""Seconds. On an idle machine the guest is up after three; emulated on a very busy one it takes minutes."""


@pytest.fixture(scope="module")
def demo(site):
    path = site.images / "demo.qcow2"
    build_demo(path, CACHE)
    return path


def folder(site, reply):
    return site.folder / "data" / "vms" / reply["uuid"]


def software(reply):
    return [(entry["name"], entry.get("state", "pending"), entry.get("version", "")) for entry in reply["software"]]


def start(site, name, demo, **parameters):
    reply = site.start(name, demo, mem_size=160, **parameters)
    assert reply["success"], reply
    return reply


def go_on(site, reply, boot=1):
    """Let a guest install `held`, for which it has waited."""
    Console(reply["name"], folder(site, reply) / "console.log").go_on(boot, LONG)


def events(site, reply):
    """The reports of a VM's agent."""
    log = folder(site, reply) / "agent.log"
    return [(event.event, event.name) for event in parse(log.read_bytes())] if log.exists() else []


def until_said(site, reply, event, times=1):
    site.until(lambda: {"said": events(site, reply)}, lambda reply: reply["said"].count(event) >= times, LONG)


def test_software_is_installed_before_it_runs_and_saved(site, demo):
    started = start(site, "soft", demo, soft_list="hello,held,lorem=0.8*", hostname="www")
    site.wait("soft", "installing", within_s=LONG)
    until_said(site, started, ("installing", "held"))
    site.watcher.look()
    seed = folder(site, started) / "seed.iso"
    assert seed.exists()
    assert "seed.iso" in virsh("domblklist", "soft")
    (site.images / "tools.iso").write_bytes(iso({"hello": b"world"}))
    refused = site.call("modify", name="soft", cd_image=f"file://{site.images}/tools.iso")
    assert (refused["success"], "is installing: its CD" in refused["message"]) == (False, True), refused
    go_on(site, started)
    ready = site.wait("soft", "running", "failed to start", within_s=LONG)
    assert ready["status"] == "running", ready
    assert software(ready) == [
        ("hello", "installed", "2.10-r0"),
        ("held", "installed", "1.0-r0"),
        ("lorem=0.8*", "installed", "0.8-r1"),
    ]
    assert not seed.exists()
    assert "seed.iso" not in virsh("domblklist", "soft")
    assert site.call("modify", name="soft", cd_image=f"file://{site.images}/tools.iso")["success"]
    events = [data for tag, data in site.events if tag.endswith(f"{started['uuid']}/installing")]
    messages = [data["message"] for data in events]
    assert len(messages) == len(set(map(str, events)))
    assert "Installing 2 of 3: held." in messages

    # Durable: later reports of the guest change nothing, nor does its reboot.
    with (folder(site, started) / "agent.log").open("ab") as log:
        log.write(b'{"event": "failed", "name": "hello", "tail": "no"}\n')
    virsh("reset", "soft")
    site.watcher.look()
    assert site.call("status", name="soft")["status"] == "running"

    site.until(lambda: {"x": (folder(site, started) / "console.log").read_text(errors="replace")},
               lambda reply: reply["x"].count("demo guest, boot 2") > 0, LONG)  # fmt: skip
    until_said(site, started, ("up", ""), 2)  # from then on it hears its button
    site.call("shutdown", name="soft")
    site.wait("soft", "halted", within_s=LONG)
    saved = site.saved_file("soft")
    assert read_demo_package(saved, "qcow2", "hello") == "2.10-r0"
    manifest = json.loads(saved.with_name("soft.qcow2.manifest.json").read_text())
    assert [entry["name"] for entry in manifest["software"]] == ["hello", "held", "lorem=0.8*"]

    # It boots again without a seed, and has the software.
    site.start("again", saved, mem_size=160, hda_save_to=f"file://{site.saved_file('again')}")
    again = site.wait("again", "running", within_s=LONG)
    assert again["software"] == []
    assert "seed.iso" not in virsh("domblklist", "again")
    until_said(site, again, ("done", ""))
    site.call("shutdown", name="again")
    site.wait("again", "halted", within_s=LONG)
    assert read_demo_package(site.saved_file("again"), "qcow2", "hello") == "2.10-r0"
    assert read_demo_boots(site.saved_file("again"), "qcow2") == 3


def test_unknown_package_fails_to_start_and_saves_nothing(site, demo):
    site.saved_file("none").write_text("what was saved before")
    started = start(site, "none", demo, soft_list=["hello", "no-such-thing", "lorem"])
    reply = site.wait("none", "failed to start", "running", within_s=LONG)
    assert reply["status"] == "failed to start"
    assert "ERROR: unable to select packages" in reply["message"]
    assert [state for _, state, _ in software(reply)] == ["installed", "failed", "pending"]
    assert "no-such-thing" in reply["software"][1]["tail"]
    assert "none" not in virsh("list", "--all", "--name").split()
    assert site.saved_file("none").read_text() == "what was saved before"
    left = {path.name for path in folder(site, started).iterdir()}
    assert {"agent.log", "console.log"} <= left
    assert not [name for name in left if name.endswith((".qcow2", ".iso", ".pem"))]

    # A new start is a new life: reports of the old one do not count.
    assert site.start("none", demo, mem_size=160, soft_list=["hello"])["success"]
    assert software(site.wait("none", "running", within_s=LONG)) == [("hello", "installed", "2.10-r0")]
    site.call("destroy", name="none")


def test_guest_without_a_list_is_ready_when_up(site, demo):
    start(site, "up", demo, run_agent=True)
    reply = site.wait("up", "running", within_s=LONG)
    assert reply["software"] == []
    site.call("destroy", name="up")


def test_guest_that_reboots_amid_its_work_goes_on(site, demo):
    started = start(site, "reboot", demo, soft_list="hello,held,lorem")
    until_said(site, started, ("installing", "held"))
    Console("reboot", folder(site, started) / "console.log").wait(PROMPT, LONG)
    virsh("reset", "reboot")
    go_on(site, started, boot=2)
    assert software(site.wait("reboot", "running", within_s=LONG)) == [
        ("hello", "installed", "2.10-r0"),
        ("held", "installed", "1.0-r0"),
        ("lorem", "installed", "0.8-r1"),
    ]
    assert events(site, started).count(("up", "")) == 2
    site.call("destroy", name="reboot")


def test_image_without_agent_fails_at_the_limit(fresh_site, bootchain):
    site = fresh_site
    site.start("deaf", bootchain("deaf.raw", folder=site.images, variant="spin"), soft_list="nginx")
    observed = site.wait("deaf", "installing", within_s=LONG)
    assert "has not reported" in observed["message"]
    site.__init__(site.folder, install_limit_s=1.0)  # which will be over, and was half an hour until now
    reply = site.wait("deaf", "failed to start", within_s=LONG)
    assert "neither cloud-init nor Saltern's agent nor qemu-guest-agent" in reply["message"]
    assert not site.saved_file("deaf").exists()


def test_time_in_which_it_was_paused_does_not_count(fresh_site, bootchain, monkeypatch):
    """The test moves the worker's clock ahead by hours. Its limit is half of one."""
    site = fresh_site
    worker, clock = site.worker, site.worker.now

    def pending():
        record, domain = worker.store.find(name="paused"), worker.domain(worker.store.find(name="paused"))
        return next_step(record, domain, read_readiness(worker, record, domain))

    def later(hours):
        monkeypatch.setattr(worker, "now", lambda: clock() + timedelta(hours=hours))

    site.start("paused", bootchain("paused.raw", folder=site.images, variant="spin"), run_agent=True)
    site.wait("paused", "installing", within_s=LONG)
    assert site.call("suspend", name="paused")["success"]
    later(1)
    site.watcher.look()
    assert site.call("status", name="paused")["status"] == "suspended"
    assert site.call("resume", name="paused")["success"]
    assert site.call("status", name="paused")["status"] == "installing"
    assert pending() is None
    later(2)
    assert pending() is Step.GIVE_UP
    eventually(lambda: not helpers(site.settings))  # the one that has booted it looks once more, with its own clock
    step_loop._do(worker, worker.store.find(name="paused").uuid, Step.GIVE_UP)  # here, where the clock is the same
    site.wait("paused", "failed to start", within_s=PATIENCE_S)


def test_guest_off_before_it_is_ready_failed_to_start(site, bootchain):
    site.start("early", bootchain("early.raw", folder=site.images), soft_list="nginx")
    reply = site.wait("early", "failed to start", within_s=LONG)
    assert "shut down before" in reply["message"]
    assert not site.saved_file("early").exists()


def test_secrets_stay_in_the_seed(site, demo, capfd):
    document = site.images / "user-data"
    document.write_text("#cloud-config\npassword: geheim\n")
    started = start(site, "minion", demo, soft_list="held", user_data=f"file://{document}", minion_master="salt.test")
    reply = site.wait("minion", "installing", within_s=LONG)
    assert reply["minion_key"].startswith("-----BEGIN PUBLIC KEY-----")
    private = (folder(site, started) / "minion.pem").read_text().splitlines()[1]
    for name in ("minion.pem", "seed.iso", "user-data"):
        assert (folder(site, started) / name).stat().st_mode & 0o077 == 0, name
    go_on(site, started)
    ready = site.wait("minion", "running", within_s=LONG)
    assert ready["minion_key"] == reply["minion_key"]
    shown = json.dumps([reply, ready, site.events, site.call("list")]) + site.logs()
    shown += virsh("dumpxml", "minion") + (folder(site, started) / "record.json").read_text()
    assert "geheim" not in shown
    assert private not in shown
    kept = {path.name for path in folder(site, started).iterdir()}
    assert not kept & {"minion.pem", "seed.iso", "user-data"}
    site.call("destroy", name="minion")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"password: x\n", "no document for cloud-init"),
        (b"#cloud-config\n" + b"#" * (300 << 10), "larger than 256 KiB"),
    ],
)
def test_user_data_that_is_none(site, demo, content, words):
    document = site.images / "none"
    document.write_bytes(content)
    name = f"none-{len(content)}"
    start(site, name, demo, user_data=f"file://{document}")
    assert words in site.wait(name, "failed to start", within_s=LONG)["message"]


def test_malicious_guest_changes_only_its_own_report(site, demo):
    """Possible output of a guest: endless garbage, other names, terminal escapes."""
    started = start(site, "hostile", demo, soft_list="held")
    site.wait("hostile", "installing", within_s=LONG)
    with (folder(site, started) / "agent.log").open("ab") as log:
        log.write(os.urandom(4096) + b"\n" + b"{" * 20000 + b'\n{"event": "installed", "name": "../../x"}\n')
        log.write(b'{"event": "installed", "name": "held", "version": "\\u001b[31m1"}\n{"event": "up"')
    reply = site.call("status", name="hostile")
    assert software(reply) == [("held", "installed", "?[31m1")]
    assert reply["status"] == "installing"
    site.call("destroy", name="hostile")


POINTS = {
    "seed.written": ("hello", "running"),
    "ready.ejected": ("hello", "running"),
    "give_up.off": ("nothing", "failed to start"),
    "not_ready.removed": ("nothing", "failed to start"),
    "not_ready.noted": ("nothing", "failed to start"),
}
"""The software list of each VM, and the status in which it ends."""
REPORTS = {
    "running": '{{"event": "up"}}\n{{"event": "installed", "name": "{name}", "version": "1"}}\n{{"event": "done"}}\n',
    "failed to start": '{{"event": "up"}}\n{{"event": "failed", "name": "{name}", "tail": "not found"}}\n',
}
"""The agent's report in a guest that ends in this status."""


@pytest.fixture
def roomy_site(libvirt):
    """A worker whose VMs never wait for a slot: a helper that another one forks on releasing it has no fault."""
    with a_site(max_parallel_jobs=2 * len(POINTS)) as made:
        yield made


@pytest.mark.parametrize("what", FAULTS)
def test_helper_that_falls_is_replaced(roomy_site, bootchain, monkeypatch, what):
    """All failpoints at once, in guests that only stay up: the test writes the agent's reports.

    Each VM has its own image, so that none waits for the download of another one, which would fork its helper.
    """
    site = roomy_site
    faults_until_met(monkeypatch, site, lambda record: f"{record.name}={what}")
    started = {}
    for point, (package, _) in POINTS.items():
        image = bootchain(f"{point}.raw", folder=site.images, variant="spin")
        started[point] = site.start(point, image, soft_list=[package])
        assert started[point]["success"], started[point]
    for point, (_, status) in POINTS.items():
        site.wait(point, "installing")
        report = REPORTS[status].format(name=POINTS[point][0])
        (folder(site, started[point]) / "agent.log").write_text(report)
    for point, (_, status) in POINTS.items():
        reply = site.wait(point, "running", "failed to start")
        assert was_met(site, reply["uuid"], f"{point}={what}"), site.logs()
        assert reply["status"] == status
        assert [state for _, state, _ in software(reply)] == ["installed" if status == "running" else "failed"]
    assert not list(site.folder.glob("data/vms/*/seed.iso"))
    for point in POINTS:
        site.call("destroy", name=point)
    assert virsh("list", "--all", "--name").split() == []
