"""Halt causes of VMs, as a real libvirt and QEMU report them to a watcher."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest

from devstack.console import Trouble
from devstack.guests import read_counter
from tests.lib.support import eventually, helpers_alive
from worker_service.state.record import Phase


@pytest.fixture
def started(machine, bootchain):
    """Starts a guest that stays up, and waits until it has counted its boot."""

    def start(name, **options):
        site = machine.site
        image = bootchain(f"{name}.raw", folder=site.images, variant="spin", **options)
        uuid = site.start(name, image)["uuid"]
        site.wait(name, "running")
        disk = site.worker.store.folder(uuid) / "hda.qcow2"
        eventually(lambda: boots(disk) == 1)
        eventually(lambda: not helpers_alive(site.settings, uuid))
        return uuid

    return start


def boots(disk):
    """How often the guest has booted; a disk that QEMU writes to at this moment may be read wrongly."""
    with suppress(Trouble):
        return read_counter(disk, "qcow2")
    return None


def test_host_shutdown_is_an_intended_halt(machine, started):
    """systemd ends QEMU with SIGTERM, which libvirt's state does not tell from the guest's own will."""
    site = machine.site
    uuid = started("told")
    with machine.watched():
        os.kill(machine.host.qemu("told"), signal.SIGTERM)
        eventually(lambda: site.worker.store.read(uuid).phase is Phase.DONE)  # no other process looks: too early
        reply = site.wait("told", "halted")
    assert reply["halt_cause"] == "host shutdown"
    assert read_counter(site.saved_file("told"), "qcow2") == 1


def test_host_that_lost_power_is_none_either(machine, started):
    """QEMU, libvirtd and all are gone at once and /run is empty. A shutdown in order before that is intended."""
    site = machine.site
    lost, ended = started("lost"), started("ended")
    os.kill(machine.host.qemu("ended"), signal.SIGTERM)
    log = machine.host.folder / "log/qemu/ended.log"
    eventually(lambda: "shutting down" in log.read_text())  # and no watcher looks at it, as in a shutdown of the host
    machine.host.cut_power()
    for uuid in (lost, ended):  # this test's own processes did not reboot
        site.worker.store.update(uuid, lambda record: msgspec.structs.replace(record, host_boot="the one before"))
    machine.start()
    reply = site.wait("ended", "halted")
    assert reply["halt_cause"] == "host shutdown"
    assert read_counter(site.saved_file("ended"), "qcow2") == 1
    reply = site.until(lambda: site.call("status", name="lost"), lambda reply: "kept" in reply["disks"]["hda"])
    assert (reply["status"], reply["halt_cause"]) == ("halted", "host crashed or lost power")
    assert read_counter(Path(reply["disks"]["hda"]["kept"]), "qcow2") == 1
    assert site.call("start", name="lost", hda_image=reply["spec"]["hda_image"], mem_size=32)["success"]
    site.wait("lost", "running")
    site.call("destroy", name="lost")
