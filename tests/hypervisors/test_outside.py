"""Somebody else ends, forgets or breaks guests on each hypervisor: no disk is lost, and start goes on with it."""

import os
import signal
from pathlib import Path

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, standing
from tests.lib.host import watched
from tests.lib.support import eventually, sha256
from worker_service.state.record import Phase

BOOTED = {name: ("spin", {}) for name in ("crashed", "forgotten", "runs")}


def until_kept(bench, site, uuid, cause, boots):
    """Wait until a VM is off with its disk kept; the disk."""
    reply = site.until(
        lambda: site.call("status", uuid=uuid), lambda reply: reply.get("disks", {}).get("hda", {}).get("kept")
    )
    assert (reply["status"], reply["halt_cause"]) == ("halted", cause), reply
    disk = Path(reply["disks"]["hda"]["kept"])
    assert bench.counted_on(site, uuid, disk) == boots
    return disk


def is_saved(reply):
    return reply["disks"]["hda"].get("saved_to")


def start_again(bench, site, uuid, name, variant="spin"):
    """Start a kept VM from its own disk, and wait until that boot is counted."""
    before = bench.boots(site, uuid)
    reply = site.start(name, site.images / f"{variant}.raw")
    assert (reply["success"], reply["uuid"]) == (True, uuid), reply
    site.wait(name, "running")
    bench.until_counted(site, uuid, before + 1)


def test_crash_and_pulled_plug_keep_the_disk(bench, site, booted):
    """The watcher's process hears of the end and acts alone, without another look."""
    uuid = booted("crashed")
    with watched(site):
        bench.crash(uuid)
        if not bench.crash_is_heard:
            site.watcher.look()
        eventually(lambda: site.worker.store.read(uuid).phase is Phase.KEPT)
        until_kept(bench, site, uuid, "crashed", 1)
    start_again(bench, site, uuid, "crashed")
    bench.power_off(uuid)
    disk = until_kept(bench, site, uuid, "powered off from outside", 2)
    assert site.call("shutdown", uuid=uuid)["success"]  # requested now, so it is saved
    site.until(lambda: site.call("status", uuid=uuid), is_saved)
    site.wait("crashed", "halted")
    assert read_counter(site.saved_file("crashed"), "qcow2") == 2
    assert not disk.exists()
    assert uuid not in bench.domains()


def test_triple_fault_keeps_the_disk(bench, site, guest, booted):
    uuid = site.start("faulty", guest("crash"))["uuid"]
    if not bench.triple_fault:  # the hypervisor resets the machine, which boots and faults again
        site.wait("faulty", "running")
        bench.until_counted(site, uuid, 2)
        assert site.call("status", uuid=uuid)["status"] == "running"
    else:
        until_kept(bench, site, uuid, bench.triple_fault, 1)
        reply = site.start("faulty", guest("crash"))
        assert (reply["success"], reply["uuid"]) == (True, uuid), reply
        site.until(lambda: {"boots": bench.boots(site, uuid)}, lambda reply: reply["boots"] == 2)
        until_kept(bench, site, uuid, bench.triple_fault, 2)
    assert site.call("destroy", uuid=uuid)["success"]


def test_definition_that_somebody_removes_keeps_the_disk(bench, site, booted):
    uuid = booted("forgotten")
    bench.power_off(uuid)
    bench.forget(uuid)
    assert uuid not in bench.domains()
    disk = until_kept(bench, site, uuid, "powered off from outside", 1)
    assert site.call("destroy", uuid=uuid)["success"]
    assert not disk.exists()


def test_foreign_domain_is_listed_and_left_alone(bench, site, guest):
    with bench.foreign("somebodys") as foreign:
        (listed,) = [each for each in site.call("list")["foreign"] if each["uuid"] == foreign]
        assert listed["name"] == "somebodys"
        site.start("somebodys", guest("poweroff"))
        reply = site.wait("somebodys", "failed to start", "running", "halted")
        assert (reply["status"], foreign in reply["message"]) == ("failed to start", True), reply
        site.watcher.look()
        assert site.call("destroy", uuid=reply["uuid"])["success"]
        for verb in ("status", "shutdown", "suspend", "destroy"):
            assert site.call(verb, uuid=foreign)["code"] == "not_found"
        assert bench.domains()[foreign] is False


HELD = ("build.disk_made", "boot.before", "boot.started", "flatten.flattened")
"""Where a helper stands when the toolstack goes away: before and after each call of the driver."""


def test_vms_outlive_their_toolstack(bench, site, guest, booted, monkeypatch):
    """One that runs, one that ends meanwhile, and one held at each step of a life."""
    runs = booted("runs")
    faults_until_met(
        monkeypatch, site, lambda record: f"{record.name[5:]}=stop" if record.name.startswith("held-") else ""
    )
    # Each has its own image: one that waits for another's fetch gets its next helper without a fault.
    images = {f"held-{point}": guest("poweroff", size=number << 20) for number, point in enumerate(HELD, start=2)}
    held = {name: site.start(name, image)["uuid"] for name, image in images.items()}
    site.until(
        lambda: {"held": [uuid for uuid in held.values() if standing(site.settings, uuid)]},
        lambda reply: len(reply["held"]) == len(held),
    )
    ends = site.start("ends", guest("poweroff", seconds=2))["uuid"]
    bench.until_counted(site, ends)
    with bench.without_toolstack():
        bench.until_last_word(site, ends)
        unheard = site.call("status", uuid=runs)
        assert (unheard["success"], unheard["code"]) == (False, "hypervisor_unavailable"), unheard
        site.watcher.look()  # sees nothing, says nothing, touches nothing
        for uuid in held.values():
            for pid in standing(site.settings, uuid):
                os.kill(pid, signal.SIGCONT)
        assert bench.is_alive(runs)
    assert site.wait("runs", "running")["uuid"] == runs
    for name in (*held, "ends"):
        reply = site.wait(name, "halted", "failed to start", "failed to save")
        if reply["halt_cause"] == bench.unheard_end == "unknown":  # it ended meanwhile, and only a person knows how
            assert site.call("shutdown", uuid=reply["uuid"])["success"]
            site.until(lambda name=name: site.call("status", name=name), is_saved)
            reply = site.wait(name, "halted")
        else:
            assert (reply["status"], reply["halt_cause"]) == ("halted", "guest shut down"), site.logs()
        assert read_counter(site.saved_file(name), "qcow2") == 1
        assert reply["disks"]["hda"]["sha256"] == sha256(site.saved_file(name))
    assert bench.boots(site, runs) == 1


def test_host_that_lost_power_keeps_the_disk(bench, site, booted):
    uuid = booted("runs")
    bench.reboot_host(site)
    until_kept(bench, site, uuid, "host crashed or lost power", 1)
    start_again(bench, site, uuid, "runs")
    assert site.call("destroy", uuid=uuid)["success"]
