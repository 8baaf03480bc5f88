"""A real Linux on each hypervisor: the agent installs software, and the guest sees its discs and its network."""

import hashlib

from tests.hypervisors.discs import build_disc
from tests.lib.support import sha256

LONG = 600
"""Seconds. On an idle machine the guest is up after three; emulated within an emulated host it takes a minute."""
NO_DISC = hashlib.sha256(b"").hexdigest()


def test_linux_installs_software_and_sees_what_it_has(bench, site, demo):
    can = bench.capabilities(site)
    network = "user" if "user" in can.networks else "none"
    saved = site.saved / "soft.raw"
    given = {"soft_list": "hello", "network": network, "mem_size": 192, "hda_save_to": f"file://{saved}?format=raw"}
    if not can.seed:
        refused = site.start("soft", demo, **given)
        assert (refused["success"], refused["code"], "seed" in refused["message"]) == (False, "unsupported", True)
        return
    uuid = site.start("soft", demo, **given)["uuid"]
    reply = site.wait("soft", "running", "failed to start", within_s=LONG)
    assert reply["status"] == "running", reply
    assert [(each["name"], each["state"], each["version"]) for each in reply["software"]] == [
        ("hello", "installed", "2.10-r0")
    ]

    def until_said(*words):
        site.until(
            lambda: {"said": bench.output(site, uuid).decode(errors="replace").split()},
            lambda reply: any(reply["said"][at : at + len(words)] == list(words) for at in range(len(reply["said"]))),
            LONG,
        )

    disc = site.images / "seen.iso"
    build_disc(disc, b"what the guest sees")
    for image, digest in ((f"file://{disc}", sha256(disc)), ("", NO_DISC)):
        assert site.call("modify", uuid=uuid, cd_image=image)["success"]
        until_said("disc:", digest)
    if network == "user":
        assert b"address: 10." in bench.output(site, uuid)
    assert site.call("shutdown", uuid=uuid)["success"]
    reply = site.wait("soft", "halted", within_s=LONG)
    assert reply["halt_cause"] == "operator shutdown"
    # A file of the guest begins with a sector. No program of an emulated host reads its file system.
    assert saved.read_bytes().find(b"2.10-r0\n") % 512 == 0
