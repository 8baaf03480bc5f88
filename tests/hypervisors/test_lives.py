"""Lives of guests on each hypervisor, through the worker's verbs: from images to saved disks that boot again."""

import json
from pathlib import Path

from backports import zstd

from devstack.guests import read_counter, read_long_mode
from tests.hypervisors.discs import build_disc, build_installer
from tests.lib.support import sha256

VERSION, LONGEST = "1.2.3", f"A{'-' * 61}z"
"""Names with which a tool could have its troubles."""


BOOTED = {"steady": ("spin", {}), "obeys": ("button", {"sys_arch": "i386"})}


def test_disks_are_saved_and_boot_again(bench, site, guest, booted):
    """Of a guest that counts its boot and powers off: both disks, under names that are hard to write."""
    data = site.images / "data.raw"
    data.write_bytes(b"payload".ljust(1 << 20, b"\0"))
    second = site.saved / "second.raw"
    reply = site.start(
        VERSION, guest("poweroff"), hdb_image=f"file://{data}", hdb_save_to=f"file://{second}?format=raw"
    )
    assert reply["success"], reply
    reply = site.wait(VERSION, "halted", "failed to start", "failed to save")
    assert (reply["status"], reply["halt_cause"]) == ("halted", "guest shut down"), reply
    saved = site.saved_file(VERSION)
    assert (read_counter(saved, "qcow2"), read_long_mode(saved, "qcow2")) == (1, True)
    assert second.read_bytes() == data.read_bytes()
    assert json.loads(Path(f"{second}.manifest.json").read_text())["sha256"] == sha256(second)
    assert reply["disks"]["hda"]["sha256"] == sha256(saved)
    assert reply["uuid"] not in bench.domains()
    assert not [path for path in site.leftovers() if reply["uuid"] in path]

    again = site.start(LONGEST, saved, hda_save_to=f"file://{site.saved}/again.raw.zst?format=raw&compress=zstd")
    assert again["success"], again
    assert site.wait(LONGEST, "halted")["halt_cause"] == "guest shut down"
    again = site.saved / "again.raw"
    again.write_bytes(zstd.decompress((site.saved / "again.raw.zst").read_bytes()))
    assert read_counter(again, "raw") == 2
    assert read_counter(saved, "qcow2") == 1  # an image is never written to


def test_blank_disk_is_installed_from_a_cd(bench, site):
    disc = site.images / "installer.iso"
    build_installer(disc)
    to = f"file://{site.saved_file('installed')}"
    given = {"hda_image": "blank:4M", "cd_image": f"file://{disc}", "hda_save_to": to}
    reply = site.call("start", name="installed", **{**site.defaults, **given})
    assert reply["success"], reply
    reply = site.wait("installed", "halted", "failed to start", "failed to save")
    assert (reply["status"], reply["halt_cause"]) == ("halted", "guest shut down"), reply
    assert read_counter(site.saved_file("installed"), "qcow2") == 1


def test_guest_that_ignores_everything_is_ruled(bench, site, booted):
    """Pause, go on, change the CD, press the button, destroy: all of a guest that takes no notice."""
    uuid = booted("steady")
    for verb, status in (("suspend", "suspended"), ("resume", "running")):
        for _ in range(2):  # the second time it is so already
            assert site.call(verb, uuid=uuid)["success"]
            assert site.call("status", uuid=uuid)["status"] == status

    disc = site.images / "disc.iso"
    build_disc(disc, b"hello")
    assert site.call("modify", uuid=uuid, cd_image=f"file://{disc}")["success"]
    inserted = site.until(lambda: {"disc": bench.disc(uuid)}, lambda reply: reply["disc"])["disc"]
    assert sha256(inserted) == sha256(disc)
    assert site.call("modify", uuid=uuid, cd_image="")["success"]
    site.until(lambda: {"disc": bench.disc(uuid)}, lambda reply: not reply["disc"])

    assert site.call("shutdown", uuid=uuid)["success"]
    reply = site.until(lambda: site.call("status", uuid=uuid), lambda reply: reply["problem"])
    assert (reply["status"], "ignores" in reply["problem"]) == ("running", True), reply

    assert site.call("destroy", uuid=uuid)["success"]
    assert uuid not in bench.domains()
    assert not bench.is_alive(uuid)
    assert not site.saved_file("steady").exists()
    assert not [path for path in site.leftovers() if uuid in path]


def test_power_button_ends_and_saves(bench, site, booted):
    """And an i386 guest is offered no long mode, as it sees itself."""
    uuid = booted("obeys")
    assert site.call("shutdown", uuid=uuid)["success"]
    reply = site.wait("obeys", "halted", "failed to save")
    assert reply["halt_cause"] == "operator shutdown"
    saved = Path(reply["disks"]["hda"]["saved_to"].removeprefix("file://"))
    assert (read_counter(saved, "qcow2"), read_long_mode(saved, "qcow2")) == (1, False)
    assert uuid not in bench.domains()
