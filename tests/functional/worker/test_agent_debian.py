"""Software in a real Debian 12 with its own cloud-init, from Debian's mirror, in emulation: minutes, hence `slow`."""

import shutil

import pytest

from devstack.guests.build import CACHE
from devstack.guests.debian import build_debian, read_debian_files
from tests.support import virsh

pytestmark = pytest.mark.slow

LONG = 1800
"""Seconds. A boot takes about 80 on an idle machine of two processors, and the installation as long again."""

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzPaRdQp3vLm8 me@host"
USER_DATA = """#cloud-config
write_files:
  - {path: /etc/greeting, content: "from the user's own document"}
  - path: /etc/rc.local
    permissions: "0755"
    content: |
      #!/bin/sh
      dpkg-query -W -f '${Package} is ${db:Status-Status}\\n' hello qemu-guest-agent >/dev/ttyS0
"""
"""Beside a file: at each later boot the guest says on its console what dpkg knows."""


@pytest.fixture(scope="module")
def debian(site):
    return shutil.copy(build_debian(CACHE), site.images / "debian.qcow2")


@pytest.fixture(scope="module")
def two(site, debian):
    """Both at once, on a processor each: one that gets what it is to have, and one that is to have what is not."""
    document = site.images / "user-data"
    document.write_text(USER_DATA)
    site.saved_file("wrong").write_text("what was saved before")
    more = {"hostname": "right.example.com", "ssh_keys": [KEY], "user_data": f"file://{document}"}
    site.start("right", debian, mem_size=512, soft_list="hello=2*,qemu-guest-agent", **more)
    site.start("wrong", debian, mem_size=512, soft_list=["hello", "no-such-package-anywhere"])
    right = site.wait("right", "running", "failed to start", within_s=LONG)
    return right, site.wait("wrong", "running", "failed to start", within_s=LONG)


def test_two_packages_are_installed_and_told_with_their_versions(two):
    right, _ = two
    assert right["status"] == "running", right
    assert [(entry["name"], entry["state"]) for entry in right["software"]] == [
        ("hello=2*", "installed"),
        ("qemu-guest-agent", "installed"),
    ]
    hello, guest_agent = (entry["version"] for entry in right["software"])
    assert hello.startswith("2")
    assert guest_agent


def test_a_package_that_does_not_exist_fails_with_the_words_of_apt(site, two):
    _, wrong = two
    assert wrong["status"] == "failed to start", wrong
    assert "E: Unable to locate package no-such-package-anywhere" in wrong["message"]
    assert [entry["state"] for entry in wrong["software"]] == ["installed", "failed"]
    assert site.saved_file("wrong").read_text() == "what was saved before"
    assert "wrong" not in virsh("list", "--all", "--name").split()


def test_what_is_saved_has_it_and_boots_without_the_seed(site, two):
    assert "seed.iso" not in virsh("domblklist", "right")
    site.call("shutdown", name="right")
    site.wait("right", "halted", within_s=LONG)
    saved = site.saved_file("right")

    told = ("/etc/hostname", "/etc/greeting", "/home/debian/.ssh/authorized_keys")
    of_the_agent = ("/var/lib/cloud/scripts/per-boot/saltern-agent", "/var/lib/saltern-agent/soft_list")
    hostname, greeting, keys, *left = read_debian_files(saved, "qcow2", *told, *of_the_agent)
    assert hostname.decode().strip() == "right"
    assert greeting.decode() == "from the user's own document"
    assert KEY.encode() in keys
    assert left == [b"", b""]

    uuid = site.start("again", saved, mem_size=512, hda_save_to="")["uuid"]
    console = site.folder / "data" / "vms" / uuid / "console.log"
    said = site.until(
        lambda: {"console": console.read_text(errors="replace") if console.exists() else ""},
        lambda reply: "right login:" in reply["console"] and "qemu-guest-agent is" in reply["console"],
        LONG,
    )["console"]
    assert "hello is installed" in said
    assert "qemu-guest-agent is installed" in said
    assert site.call("status", name="again")["status"] == "running"
    assert "seed.iso" not in virsh("domblklist", "again")
    site.call("destroy", name="again")
