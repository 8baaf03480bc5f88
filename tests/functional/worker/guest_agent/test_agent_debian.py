"""Software in a real Debian 12 with its own cloud-init, from Debian's mirror. Emulation takes minutes, hence `slow`."""

import json
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from devstack import process
from devstack.guests.build import CACHE
from devstack.guests.debian import build_debian
from devstack.guests.debian_root import DebianRoot
from devstack.guests.tools import convert
from devstack.layout import PYTHON, REPO, Layout, Ports
from devstack.stack import Stack
from tests.lib.support import eventually, virsh
from worker_service.guest_agent.report import parse
from worker_service.guest_agent.seed_iso import AGENT

pytestmark = pytest.mark.slow

LONG = 1800
"""Seconds. A boot takes about a minute on a machine of two processors, and each package half of one."""

NAME = "right.example.com"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzPaRdQp3vLm8 me@host"
USER_DATA = """#cloud-config
write_files:
  - {path: /etc/greeting, content: "from the user's own document"}
  - path: /etc/rc.local
    permissions: "0755"
    content: |
      #!/bin/sh
      dpkg-query -W -f '${Package} is ${db:Status-Status}\\n' hello qemu-guest-agent >/dev/ttyS0
  - path: /usr/sbin/policy-rc.d
    permissions: "0755"
    content: |
      #!/bin/sh
      case $1 in qemu-guest-agent*) [ ! -e /etc/held ] || exit 0 ;; *) exit 0 ;; esac
      touch /etc/held
      sync
      echo "dpkg waits for a reset" >/dev/ttyS0
      exec sleep infinity
"""
"""Beside a file: at each later boot the guest says on its console what dpkg knows; and dpkg, the first time that it
configures qemu-guest-agent, gets no further, so that the reset always comes amid its work."""


@pytest.fixture(scope="module")
def debian(site):
    return shutil.copy(build_debian(CACHE), site.images / "debian.qcow2")


@pytest.fixture
def folder(site):
    return lambda reply: site.folder / "data" / "vms" / reply["uuid"]


def said(site, reply, *words):
    """Wait until a guest has said all these words on its console; all that it said."""
    console = site.folder / "data" / "vms" / reply["uuid"] / "console.log"
    return site.until(
        lambda: {"console": console.read_text(errors="replace") if console.exists() else ""},
        lambda observed: all(word in observed["console"] for word in words),
        LONG,
    )["console"]


def said_by_agent(folder):
    return [(event.event, event.name) for event in parse((folder / "agent.log").read_bytes())]


def states(reply):
    return [(entry["name"], entry.get("state")) for entry in reply["software"]]


@pytest.fixture(scope="module")
def two(site, debian):
    """Run both at once, on a processor each: one with existing packages, and one with a missing package.

    The first is reset during its installation. Return its reports before that, and how both ended.
    """
    document = site.images / "user-data"
    document.write_text(USER_DATA)
    site.saved_file("wrong").write_text("what was saved before")
    more = {"hostname": NAME, "ssh_keys": [KEY], "user_data": f"file://{document}", "minion_master": "127.0.0.1"}
    started = site.start("right", debian, mem_size=512, soft_list="hello=2*,qemu-guest-agent", **more)
    site.start("wrong", debian, mem_size=512, soft_list=["hello", "no-such-package-anywhere"])
    said(site, started, "dpkg waits for a reset")
    amid = site.wait("right", "installing", within_s=LONG)
    virsh("reset", "right")
    right = site.wait("right", "running", "failed to start", within_s=LONG)
    return amid, right, site.wait("wrong", "running", "failed to start", within_s=LONG)


def test_two_packages_are_installed_with_versions(two):
    _, right, _ = two
    assert right["status"] == "running", right
    assert states(right) == [("hello=2*", "installed"), ("qemu-guest-agent", "installed")]
    hello, guest_agent = (entry["version"] for entry in right["software"])
    assert hello.startswith("2")
    assert guest_agent


def test_reset_during_installation_continues(site, two, folder):
    amid, right, _ = two
    assert states(amid) == [("hello=2*", "installed"), ("qemu-guest-agent", "installing")]
    console = said(site, right)
    assert console.count("dpkg waits for a reset") == 1
    assert "qemu-guest-agent is half-configured" in console
    assert "Invalid cloud-config" not in console
    assert [event for event in said_by_agent(folder(right)) if event[0] != "working"] == [
        ("up", ""), ("installing", "hello=2*"), ("installed", "hello=2*"), ("installing", "qemu-guest-agent"),
        ("up", ""), ("installed", "hello=2*"), ("installed", "qemu-guest-agent"), ("done", ""),
    ]  # fmt: skip


def test_unknown_package_fails_with_apts_message(site, two):
    wrong = two[-1]
    assert wrong["status"] == "failed to start", wrong
    assert "E: Unable to locate package no-such-package-anywhere" in wrong["message"]
    assert [entry["state"] for entry in wrong["software"]] == ["installed", "failed"]
    assert site.saved_file("wrong").read_text() == "what was saved before"
    assert "wrong" not in virsh("list", "--all", "--name").split()


@pytest.fixture(scope="module")
def saved(site, two):
    """The first one's root partition, after it was shut down and saved."""
    assert "seed.iso" not in virsh("domblklist", "right")
    site.call("shutdown", name="right")
    site.wait("right", "halted", within_s=LONG)
    return DebianRoot(site.saved_file("right"), "qcow2", site.images / "right.raw")


def test_saved_disk_has_software_and_no_agent(saved):
    assert saved.read("/etc/hostname").decode().strip() == "right"
    assert saved.read("/etc/greeting").decode() == "from the user's own document"
    assert KEY.encode() in saved.read("/home/debian/.ssh/authorized_keys")
    assert saved.read("/var/lib/cloud/scripts/per-boot/saltern-agent") == b""
    assert saved.read("/var/lib/saltern-agent/soft_list") == b""
    status = saved.read("/var/lib/dpkg/status").decode()
    whole = status.count("\nStatus: install ok installed\n")
    assert whole == status.count("\nStatus: ") > 100


@pytest.fixture(scope="module")
def salt_master():
    """A real Salt master, which knows no minion of a guest."""
    var = Path(tempfile.mkdtemp(prefix="saltern-salt-", dir="/var/tmp"))
    layout = Layout(var=var, ports=Ports.free(), minion="nobody")
    stack = Stack(layout)
    stack.start(["salt-master"])
    yield layout
    stack.stop()
    shutil.rmtree(var)


def test_minion_key_matches_the_one_in_the_status(salt_master, saved, two):
    """Debian 12 has no minion, so the minion runs here, on the files that cloud-init has put into the guest for it."""
    root = salt_master.var / "guest"  # a short path: Salt's sockets lie below it
    (root / "etc").mkdir(parents=True)
    saved.copy("/etc/salt", root / "etc")
    etc = root / "etc/salt"
    files = {str(path.relative_to(etc)): path for path in etc.rglob("*") if path.is_file()}
    modes = {name: stat.S_IMODE(path.stat().st_mode) for name, path in files.items()}
    keys = {"pki/minion/minion.pem": 0o400, "pki/minion/minion.pub": 0o644}
    assert modes == {**keys, "minion.d/saltern.conf": 0o644}
    assert files["pki/minion/minion.pub"].read_text().strip() == two[1]["minion_key"].strip()

    pki = salt_master.salt / "pki/master"
    (pki / "minions" / NAME).write_text(two[1]["minion_key"])  # as the master's administrator does
    here = {"root_dir": str(root), "master_port": salt_master.ports.request, "user": "root"}
    (etc / "minion").write_text(json.dumps(here))  # which a package would bring
    log = root / "minion.log"
    minion = process.spawn([str(PYTHON.with_name("salt-minion")), "-c", str(etc)], log=log, cwd=REPO)
    ping = [PYTHON.with_name("salt"), "-c", salt_master.salt, "--out=json", "--static", "-t", "5", NAME, "test.ping"]
    try:
        eventually(lambda: b"true" in subprocess.run(ping, check=False, capture_output=True).stdout, LONG)
    finally:
        process.end(minion, log, grace_s=5)
    assert not list(pki.glob("minions_pre/*")) + list(pki.glob("minions_denied/*"))


AGENT_UNIT = b"""[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Type=oneshot
ExecStart=/usr/local/sbin/saltern-agent
"""


@pytest.fixture(scope="module")
def later(site, saved):
    """Three boots of the saved disk at once: unchanged, without cloud-init, and with the agent instead of it."""
    again = site.start("again", site.saved_file("right"), mem_size=512, hda_save_to="")
    saved.write("/etc/cloud/cloud-init.disabled")
    convert(saved.raw, "raw", site.images / "alone.qcow2", "qcow2")
    site.start("alone", site.images / "alone.qcow2", mem_size=512, hda_save_to="", run_agent=True)
    saved.write("/usr/local/sbin/saltern-agent", AGENT.read_bytes(), 0o755)
    saved.write("/etc/systemd/system/saltern-agent.service", AGENT_UNIT)
    saved.link("/etc/systemd/system/multi-user.target.wants/saltern-agent.service", "../saltern-agent.service")
    convert(saved.raw, "raw", site.images / "own.qcow2", "qcow2")
    site.start("own", site.images / "own.qcow2", mem_size=512, hda_save_to="", soft_list="hello,tree")
    alone = site.wait("alone", "running", "failed to start", within_s=LONG)
    return again, alone, site.wait("own", "running", "failed to start", within_s=LONG)


def test_saved_disk_boots_without_seed_with_software(site, later):
    again, *_ = later
    console = said(site, again, "right login:", "qemu-guest-agent is")
    assert "hello is installed" in console
    assert "qemu-guest-agent is installed" in console
    assert site.call("status", name="again")["status"] == "running"
    assert "seed.iso" not in virsh("domblklist", "again")
    site.call("destroy", name="again")


def test_qemu_guest_agent_without_cloud_init_is_ready(site, later, folder):
    _, alone, _ = later
    assert alone["status"] == "running", alone
    assert (folder(alone) / "agent.log").read_bytes() == b""
    answer = json.loads(virsh("qemu-agent-command", "alone", '{"execute": "guest-get-host-name"}'))
    assert answer["return"]["host-name"] == "right"
    site.call("destroy", name="alone")


def test_agent_in_the_image_installs_without_cloud_init(site, later, folder):
    own = later[-1]
    assert own["status"] == "running", own
    assert states(own) == [("hello", "installed"), ("tree", "installed")]
    assert all(entry["version"] for entry in own["software"])
    assert ("installing", "hello") not in said_by_agent(folder(own))
    assert "seed.iso" not in virsh("domblklist", "own")
    site.call("destroy", name="own")


def test_guest_with_no_agent_at_all_fails_at_the_limit(fresh_site, debian):
    site = fresh_site
    root = DebianRoot(debian, "qcow2", site.images / "neither.raw")
    root.write("/etc/cloud/cloud-init.disabled")
    convert(root.raw, "raw", site.images / "neither.qcow2", "qcow2")
    started = site.start("neither", site.images / "neither.qcow2", mem_size=512, soft_list="hello")
    said(site, started, "login:")
    waiting = site.call("status", name="neither")
    assert (waiting["status"], "has not reported" in waiting["message"]) == ("installing", True)
    site.__init__(site.folder, install_limit_s=1.0)  # it is up, and will never say a word
    reply = site.wait("neither", "running", "failed to start", within_s=LONG)
    assert reply["status"] == "failed to start"
    assert "neither cloud-init nor Saltern's agent nor qemu-guest-agent" in reply["message"]
    assert not site.saved_file("neither").exists()
