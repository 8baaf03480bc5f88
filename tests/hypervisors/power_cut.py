"""A worker in a dom0 whose power is cut: `python -m tests.hypervisors.power_cut before`, and `after` the next boot."""

import os
import sys
from pathlib import Path

from devstack.guests import build_bootchain, read_counter
from tests.lib.support import Site, eventually, helpers_alive

FOLDER = Path("/var/lib/saltern-power-cut")


def worker():
    """Return the worker whose files outlive the power cut."""
    FOLDER.mkdir(exist_ok=True)
    site = Site(FOLDER, hypervisors=["xen"], qemu_user="root")
    site.defaults = {"hypervisor": "xen", "network": "none"}
    site.pause_s, site.rest = 0.5, 1.0
    return site


def boots(site):
    """Return how often the guest has said that its boot is counted."""
    uuid = site.worker.store.find(name="lost").uuid
    return (site.worker.store.folder(uuid) / "console.log").read_bytes().count(b"boot ")


def before(site):
    """Start a guest that runs until the power is cut."""
    image = site.images / "spin.raw"
    build_bootchain(image, variant="spin")
    os.sync()  # what the test itself has written
    reply = site.start("lost", image)
    assert reply["success"], reply
    site.wait("lost", "running")
    eventually(lambda: boots(site) == 1)
    eventually(lambda: not helpers_alive(site.settings))


def after(site):
    """Its disk is kept with the one boot that it has counted, and it goes on from there."""
    reply = site.until(lambda: site.call("status", name="lost"), lambda reply: reply["disks"]["hda"].get("kept"))
    assert (reply["status"], reply["halt_cause"]) == ("halted", "host crashed or lost power"), reply
    assert read_counter(Path(reply["disks"]["hda"]["kept"]), "qcow2") == 1
    said = boots(site)  # a line may be lost with the host
    again = site.start("lost", site.images / "spin.raw")
    assert (again["success"], again["uuid"]) == (True, reply["uuid"]), again
    site.wait("lost", "running")
    eventually(lambda: boots(site) > said)
    assert site.call("destroy", name="lost")["success"]
    assert not site.leftovers()


if __name__ == "__main__":
    {"before": before, "after": after}[sys.argv[1]](worker())
