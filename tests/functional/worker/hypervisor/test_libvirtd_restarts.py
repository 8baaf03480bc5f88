"""libvirtd restarts under VMs in every phase, as at an upgrade: QEMU runs on, and no VM is forgotten or counts as off.

A crash of it is in tests/hypervisors.
"""

import os
import signal
import threading
from pathlib import Path

import pytest
from werkzeug import Response

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, standing
from tests.lib.support import PATIENCE_S, sha256
from worker_service.state.record import new_uuid

HELD = (
    "fetch.done",
    "build.disk_made",
    "boot.before",
    "boot.started",
    "flatten.flattened",
    "save.staged",
    "save.noted",
)
"""Where a helper is held while libvirtd goes away: before and after every question that it has for libvirt."""


def test_vms_outlive_libvirtd(machine, bootchain, httpserver, hold):
    """One that runs, one that ends meanwhile, one that is fetched, and one held at each step of a life."""
    site, how = machine.site, "term"
    enough = threading.Event()
    short = bootchain(f"{how}-short.raw", folder=site.images, variant="key")
    brief = bootchain(f"{how}-brief.raw", folder=site.images)
    slow = _slowly(httpserver, brief, enough)

    site.start(f"{how}-runs", bootchain(f"{how}-spin.raw", folder=site.images, variant="spin"))
    site.wait(f"{how}-runs", "running")
    uuids = {point: hold(f"{how}-{point.replace('.', '-')}", brief, point) for point in HELD}
    site.start(f"{how}-fetched", brief, hda_image=slow)
    site.until(lambda: {"held": _held(site, uuids)}, lambda reply: reply["held"] == len(HELD))
    site.start(f"{how}-ends", short)
    site.wait(f"{how}-ends", "running")
    site.until_counted(f"{how}-ends")
    pids = {name: machine.host.qemu(f"{how}-{name}") for name in ("runs", "ends")}

    machine.stop_libvirtd(how)
    site.press(f"{how}-ends")
    unheard = site.call("status", name=f"{how}-runs")
    assert (unheard["success"], unheard["code"]) == (False, "hypervisor_unavailable")
    assert "running VMs keep running" in unheard["message"]
    site.watcher.look()  # sees nothing, says nothing, touches nothing
    for uuid in uuids.values():
        for pid in standing(site.settings, uuid):
            os.kill(pid, signal.SIGCONT)
    enough.set()
    site.until(lambda: {"log": site.logs()}, lambda reply: reply["log"].count("libvirt does not answer") >= len(HELD))
    assert all(Path(f"/proc/{pid}").exists() for pid in pids.values())

    machine.start()
    assert site.wait(f"{how}-runs", "running")["status"] == "running"
    assert machine.host.qemu(f"{how}-runs") == pids["runs"]
    for name in (*(f"{how}-{point.replace('.', '-')}" for point in HELD), f"{how}-ends", f"{how}-fetched"):
        reply = site.wait(name, "halted", "failed to start", "failed to save")
        assert reply["status"] == "halted", site.logs()
        assert reply["halt_cause"] == "guest shut down"
        assert read_counter(site.saved_file(name), "qcow2") == 1
        assert reply["disks"]["hda"]["sha256"] == sha256(site.saved_file(name))
    site.call("destroy", name=f"{how}-runs")
    assert site.leftovers() == set()


@pytest.fixture
def hold(machine, monkeypatch):
    """Start a VM whose helper stops at a failpoint, once."""
    site, points = machine.site, {}
    faults_until_met(monkeypatch, site, lambda record: f"{points[record.uuid]}=stop" if record.uuid in points else "")

    def start(name, image, point):
        uuid = new_uuid()
        points[uuid] = point
        reply = site.start(name, image, uuid=uuid, generation=1)
        assert reply["success"], reply
        return uuid

    return start


def _held(site, uuids):
    """How many of these VMs have a helper that stands still."""
    return sum(bool(standing(site.settings, uuid)) for uuid in uuids.values())


def _slowly(httpserver, image, enough):
    """The address of an image whose last half comes on request only."""
    content = image.read_bytes()

    def chunks():
        yield content[:4096]
        enough.wait(PATIENCE_S)
        yield content[4096:]

    path = f"/{image.name}"
    headers = {"Content-Length": str(len(content))}
    httpserver.expect_request(path).respond_with_handler(lambda _request: Response(chunks(), headers=headers))
    return httpserver.url_for(path)
