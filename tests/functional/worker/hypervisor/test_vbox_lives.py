"""Whole lives through the worker's verbs with a VBoxManage of the tests: no guest runs, all else is the product's."""

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed

from devstack.guests.tools import run
from tests.hypervisors.screens import Screen, screens
from tests.lib import fake_vboxmanage
from tests.lib.support import Site, stop_helpers
from worker_service.hypervisor.vbox import driver as vbox_driver

MIB = 1 << 20


class Host:
    """A worker whose VirtualBox is the fake, and what happens to its machines."""

    def __init__(self, folder):
        self.fake = folder / "fake"
        self.fake.mkdir()
        program = folder / "VBoxManage"
        command = f'{sys.executable} -S -E {fake_vboxmanage.__file__} "$@"'
        program.write_text(f"#!/bin/sh\nFAKE_VBOX={self.fake} exec {command}\n")
        program.chmod(0o755)
        self.site = Site(folder, hypervisors=["vbox"], vboxmanage=str(program))
        self.site.defaults = {"hypervisor": "vbox", "network": "none"}
        self.image = self.site.images / "disk.raw"
        self.image.write_bytes(bytes(510) + b"\x55\xaa" + b"data" * (MIB // 4) + bytes(MIB - 512))

    @property
    def machines(self):
        with fake_vboxmanage.machines_in(self.fake) as machines:
            return machines

    def end(self, uuid, state="poweroff"):
        """End a machine as its guest does, or with another state as a crash does."""
        with fake_vboxmanage.machines_in(self.fake) as machines:
            if state == "poweroff":
                fake_vboxmanage.end(machines[uuid], "guest")
            machines[uuid]["VMState"] = state


@pytest.fixture(scope="module")
def host():
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Host(folder)
    yield made
    stop_helpers(made.site.settings, folder / "end.log")
    shutil.rmtree(folder)


@pytest.fixture(autouse=True)
def machines_are_processes(monkeypatch):
    monkeypatch.setattr(vbox_driver.events, "any_process", lambda: True)


def test_guest_that_ends_is_saved_and_leaves_nothing(host):
    site = host.site
    uuid = site.start("ends", host.image)["uuid"]
    reply = site.wait("ends", "running", "failed to start")
    assert (reply["status"], reply["console"]) == ("running", "screenshot"), site.logs()
    host.end(uuid)
    reply = site.wait("ends", "halted", "failed to save")
    assert (reply["status"], reply["halt_cause"]) == ("halted", "guest shut down"), site.logs()
    raw = site.folder / "ends.raw"
    run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", site.saved_file("ends"), raw])
    assert raw.read_bytes() == host.image.read_bytes()
    assert uuid not in host.machines
    left = {path.name for path in site.worker.store.folder(uuid).iterdir()}
    assert not [name for name in left if name.endswith((".vdi", ".part")) or name == "vbox"]


def test_crashed_guest_keeps_its_disk_and_starts_again(host):
    site = host.site
    uuid = site.start("crashes", host.image)["uuid"]
    site.wait("crashes", "running")
    host.end(uuid, "aborted")
    reply = site.until(lambda: site.call("status", uuid=uuid), lambda reply: reply["disks"]["hda"].get("kept"))
    assert (reply["status"], reply["halt_cause"]) == ("halted", "crashed")
    disk = site.worker.store.folder(uuid) / "hda.vdi"
    number = disk.stat().st_ino
    reply = site.start("crashes", host.image)
    assert (reply["success"], reply["uuid"]) == (True, uuid), reply
    assert site.wait("crashes", "running", "failed to start")["status"] == "running"
    assert disk.stat().st_ino == number
    assert site.call("destroy", uuid=uuid)["success"]
    assert uuid not in host.machines


def test_screen_shows_pictures_and_closes_with_the_machine(host):
    site = host.site
    uuid = site.start("shown", host.image)["uuid"]
    site.wait("shown", "running")
    with screens(site) as url, Screen(url, site, uuid) as screen:
        assert screen.size == (1, 1)
        assert screen.picture()
        screen.press("a")
        host.end(uuid)
        with pytest.raises(ConnectionClosed):
            screen.watch()
    site.wait("shown", "halted")
    keys = [json.loads(line)[3:] for line in (host.fake / "calls").read_text().splitlines() if "keyboardput" in line]
    assert [code for call in keys for code in call] == ["1e", "9e"]
