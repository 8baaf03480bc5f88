"""Regression: a guest that looked into its drive during a change of its disc closed the tray, as Linux does.

QEMU then showed an empty drive, or refused the change, depending on the moment.
"""

import json
from xml.etree import ElementTree as ET

import libvirt
import msgspec
import pytest

from devstack.guests import build_demo
from devstack.guests.build import CACHE
from tests.lib.console import PROMPT, Console
from tests.lib.support import eventually, helpers_alive, virsh
from worker_service.contract import TRIES
from worker_service.helper import launcher
from worker_service.state.lifecycle import Step, next_step
from worker_service.state.record import BEING_CHANGED
from worker_service.steps import registry

NAME = "looker"
DISC_BYTES = 1 << 20
COUNT = "dd if=/dev/sr0 bs=2048 2>/dev/null | wc -c"
DRIVE = "ide0-1-0"


@pytest.fixture(scope="module")
def guest(site):
    """A Linux with an empty drive, whose console takes commands."""
    image = site.images / "demo.qcow2"
    build_demo(image, CACHE)
    reply = site.start(NAME, image, mem_size=128, network="none")
    site.wait(NAME, "running")
    console = Console(NAME, site.worker.store.folder(reply["uuid"]) / "console.log")
    console.wait(PROMPT)
    assert console.ask("until [ -b /dev/sr0 ]; do sleep 1; done; echo drive") == "drive"
    eventually(lambda: not helpers_alive(site.settings, reply["uuid"]))
    yield console
    site.call("destroy", name=NAME)


@pytest.fixture
def disc(site):
    path = site.images / "disc.iso"
    path.write_bytes(b"\0" * 0x8000 + b"\x01CD001\x01" + b"\0" * (DISC_BYTES - 0x8007))
    path.chmod(0o644)
    return path


@pytest.fixture
def emptied(site, guest):
    """At the end the drive is empty again, and the guest runs."""
    yield
    virsh("resume", NAME)
    assert site.call("modify", name=NAME, cd_image="")["success"]
    site.until(lambda: {"size": guest.ask(COUNT)}, lambda reply: reply["size"] == "0")
    eventually(lambda: not helpers_alive(site.settings, record(site).uuid))


def record(site):
    return site.worker.store.find(name=NAME)


def ask_qemu(execute, **arguments):
    """Run a QEMU command that fails as libvirt's does."""
    command = {"execute": execute, "arguments": {key.replace("_", "-"): value for key, value in arguments.items()}}
    answer = json.loads(virsh("qemu-monitor-command", NAME, json.dumps(command)))
    if "error" in answer:
        raise libvirt.libvirtError(answer["error"]["desc"])


def changing(disc, then):
    """The commands with which libvirt changes a disc. `then` is called after each of them."""

    def change(_domain, xml, _flags):
        inserted = ET.fromstring(xml).find("source") is not None
        file = {"driver": "file", "filename": str(disc)}
        commands = [
            ("blockdev-open-tray", {"id": DRIVE, "force": True}),
            ("blockdev-remove-medium", {"id": DRIVE}),
            ("blockdev-add", {"node_name": "disc", "driver": "raw", "read_only": True, "file": file}),
            ("blockdev-insert-medium", {"id": DRIVE, "node_name": "disc"}),
            ("blockdev-close-tray", {"id": DRIVE}),
        ]
        for name, arguments in commands if inserted else (*commands[:2], commands[-1]):
            ask_qemu(name, **arguments)
            then(name)
        if not inserted:
            ask_qemu("blockdev-del", node_name="disc")

    return change


@pytest.mark.parametrize("moment", ["blockdev-open-tray", "blockdev-insert-medium"])
def test_guest_looks_into_its_drive_during_the_change(site, guest, disc, monkeypatch, moment):
    looks = []

    def let_the_guest_look(done):
        looks.append(done)
        if done == moment and virsh("domstate", NAME).strip() == "running":
            guest.ask(COUNT)

    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)  # the steps are done here
    monkeypatch.setattr(libvirt.virDomain, "updateDeviceFlags", changing(disc, let_the_guest_look))
    for uri, size in ((f"file://{disc}", DISC_BYTES), ("", 0)):
        looks.clear()
        assert site.call("modify", name=NAME, cd_image=uri)["success"]
        registry.change_cd(site.worker, record(site))
        assert looks[-1] == "blockdev-close-tray"
        site.until(lambda: {"size": guest.ask(COUNT)}, lambda reply, size=size: reply["size"] == str(size))
        assert next_step(record(site), site.worker.domain(record(site))) is None


def cut_off(site, **changes):
    """Leave a change of the CD as a helper does that is killed during it."""
    changed = {"cd_uri": BEING_CHANGED, **changes}
    site.worker.store.update(record(site).uuid, lambda current: msgspec.structs.replace(current, **changed))
    ask_qemu("stop")


@pytest.mark.usefixtures("emptied")
def test_interrupted_change_is_finished_and_guest_runs_on(site, guest, disc, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(launcher, "start_helper", lambda *_: True)
        assert site.call("modify", name=NAME, cd_image=f"file://{disc}")["success"]
        cut_off(site)
        assert virsh("domstate", NAME).strip() == "paused"
        assert site.call("status", name=NAME)["status"] == "running"
        assert next_step(record(site), site.worker.domain(record(site))) is Step.CHANGE_CD
    site.until(lambda: {"state": virsh("domstate", NAME).strip()}, lambda reply: reply["state"] == "running")
    site.until(lambda: {"size": guest.ask(COUNT)}, lambda reply: reply["size"] == str(DISC_BYTES))


@pytest.mark.usefixtures("emptied")
def test_guest_is_not_held_for_a_change_that_was_given_up(site, guest):
    cut_off(site, tries=TRIES)
    assert virsh("domstate", NAME).strip() == "paused"
    site.watcher.look()
    assert virsh("domstate", NAME).strip() == "running"
    assert guest.ask("echo on") == "on"


@pytest.mark.usefixtures("emptied")
def test_suspended_guest_stays_suspended(site, guest, disc, monkeypatch):
    change = libvirt.virDomain.updateDeviceFlags

    def suspend_and_change(domain, xml, flags):
        assert site.call("suspend", name=NAME)["success"]
        return change(domain, xml, flags)

    with monkeypatch.context() as patch:
        patch.setattr(launcher, "start_helper", lambda *_: True)
        patch.setattr(libvirt.virDomain, "updateDeviceFlags", suspend_and_change)
        assert site.call("modify", name=NAME, cd_image=f"file://{disc}")["success"]
        registry.change_cd(site.worker, record(site))
        assert virsh("domstate", NAME).strip() == "paused"
        assert site.call("status", name=NAME)["status"] == "suspended"
    assert site.call("resume", name=NAME)["success"]
    site.until(lambda: {"size": guest.ask(COUNT)}, lambda reply: reply["size"] == str(DISC_BYTES))
