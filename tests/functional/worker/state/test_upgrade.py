"""A data root of version 0.1.0 after the upgrade: each VM is as it was, and continues from there."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from devstack.guests import read_counter
from tests.functional.worker.old_data import OldData
from tests.lib.support import Site, eventually, sha256, virsh

RENAMED: dict[str, str] = {}
"""Field of a status of 0.1.0 -> what it is called now. Others kept their name."""


def number(n):
    return f"6d6c7f0e-0000-4000-8000-0000000000{n:02d}"


VMS = {
    "running": (1, "running", None),
    "halted": (2, "halted", "guest shut down"),
    "unsaved": (3, "halted", "guest shut down"),
    "kept": (4, "halted", "powered off from outside"),
    "unsavable": (5, "failed to save", "guest shut down"),
    "unstartable": (6, "failed to start", None),
    "suspended": (7, "suspended", None),
    "installing": (9, "installing", None),
    "fetching": (10, "starting", None),
}
"""name -> number, status, why it is off."""
GENERATIONS = {"suspended": 30}
DESTROYED = number(8)


@pytest.fixture(scope="module")
def old(libvirt):
    """Today's worker over the old data, and its first reply."""
    data = OldData("0.1.0")
    try:
        data.restore()
        vms = data.data / "vms"
        for n, boots in ((1, 0), (4, 2), (7, 0), (9, 0)):
            data.overlay(vms / number(n) / "hda.qcow2", "guest.raw", boots)
        data.overlay(vms / number(1) / "hdb.qcow2", "data.raw")
        (failed,) = (data.data / "failed_to_save").iterdir()
        data.overlay(failed / "hda.qcow2", "guest.raw", boots=5)
        data.flatten(failed, boots=5)
        (vms / number(9) / "seed.iso").write_bytes(bytes(1 << 20))
        for n in (1, 9):
            data.boot(number(n))
        data.boot(number(7), suspended=True)
        ticket = data.ticket("dummy-ticket")
        site = Site(data.folder, keep_halted_s=1e9, install_limit_s=1e9)
        try:
            coming = {each["uri"]: each for each in site.call("cache")["prefetching"]}
            listed = site.call("list", tombstones=True)
            yield SimpleNamespace(site=site, listed=listed, coming=coming, ticket=ticket, failed=failed)
        finally:
            site.close()
    finally:
        shutil.rmtree(data.folder, ignore_errors=True)


@pytest.fixture
def site(old):
    return old.site


@pytest.fixture
def first(old):
    """The status of each VM in the first list, by name."""
    return {vm["name"]: {RENAMED.get(name, name): each for name, each in vm.items()} for vm in old.listed["vmachines"]}


def uri(path):
    return f"file://{path}"


def ended(site, name):
    """The status of a VM once its guest, which waits for a key, is off."""
    site.press(name)
    return site.wait(name, "halted")


def test_each_vm_is_as_it_was(first):
    found = {name: (vm["uuid"], vm["status"], vm.get("halt_cause")) for name, vm in first.items()}
    assert found == {name: (number(n), status, cause) for name, (n, status, cause) in VMS.items()}
    generations = {name: vm["generation"] for name, vm in first.items()}
    assert generations == {name: GENERATIONS.get(name, n) for name, (n, _, _) in VMS.items()}


def test_each_vm_has_the_parameters_that_it_had(site, first):
    spec = first["running"]["spec"]
    assert (spec["cpu_count"], spec["mem_size"], spec["run_policy"]) == (2, 32, "once")
    assert spec["hda_image"] == uri(site.images / "guest.raw")
    assert spec["hdb_image"] == uri(site.images / "data.raw")
    assert spec["hdb_save_to"] == f"{uri(site.saved)}/running-b.raw?format=raw"
    spec = first["installing"]["spec"]
    assert (spec["soft_list"], spec["hostname"], spec["run_agent"]) == (["hello", "nginx=1.22*"], "www", True)
    assert spec["ssh_keys"][0].endswith(" dummy")


def test_messages_and_disks_are_reported_as_before(site, old, first):
    saved = first["halted"]["disks"]["hda"]
    assert saved["saved_to"] == uri(site.saved_file("halted"))
    assert len(saved["sha256"]) == 64
    assert "nothing was to be saved" in first["unsaved"]["message"]
    assert Path(first["kept"]["disks"]["hda"]["kept"]).exists()
    assert Path(first["unsavable"]["disks"]["hda"]["kept"]).parent == old.failed
    assert "3 times" in first["unsavable"]["message"]
    assert "none.raw" in first["unstartable"]["message"]


def test_names_and_uuids_still_lead_to_their_vms(site):
    for name, (n, _, _) in VMS.items():
        assert site.call("status", name=name)["uuid"] == number(n)
        assert site.call("status", uuid=number(n))["name"] == name
    taken = site.start("halted", site.images / "guest.raw", uuid=number(77), generation=1)
    assert taken["code"] == "name_taken"


def test_report_of_the_agent_is_kept(site, first):
    software = [(entry["name"], entry.get("state"), entry.get("version")) for entry in first["installing"]["software"]]
    assert software == [("hello", "installed", "2.10-r0"), ("nginx=1.22*", "installing", None)]
    assert "nginx" in first["installing"]["message"]
    assert "hello" in str(site.call("agent_log", name="installing"))


def test_ticket_is_still_known(site, old):
    parameters = {"uuid": number(9), "user": "uma", "admin": True}
    again = site.call("screen", ticket_sha256=old.ticket, **parameters)
    assert (again["success"], "already" in again["message"]) == (False, True), again
    assert site.call("screen", ticket_sha256="0" * 64, **parameters)["success"]


def test_audit_events_are_still_published(site):
    site.watcher.publish_audit()
    events = [
        (one["interface"], one["actor"], one["verb"], one["success"]) for tag, one in site.events if "audit" in tag
    ]
    assert events == [("worker-api", "ops", "suspend", True), ("salt-call", "sudo_alice", "destroy", False)]


def test_tombstone_refuses_older_commands(site, old):
    assert old.listed["tombstones"] == {DESTROYED: 20}
    late = site.start("destroyed", site.images / "guest.raw", uuid=DESTROYED, generation=20)
    assert late["code"] == "destroyed"
    assert site.call("status", uuid=DESTROYED)["code"] == "not_found"


def test_cached_images_are_known_by_their_uris(site):
    cached = {each: image for image in site.call("cache")["images"] for each in image["uris"]}
    guest = cached[uri(site.images / "guest.raw")]
    assert (guest["sha256"], guest["pinned"]) == (sha256(site.images / "guest.raw"), True)
    assert {"kept", "running", "suspended"} & set(guest["used_by"])
    assert uri(site.images / "data.raw") in cached


def test_orders_to_prefetch_go_on(site, old):
    later, never = uri(site.images / "later.raw"), "http://127.0.0.1:1/never.raw"
    assert (old.coming[later]["pin"], old.coming[later]["given_up"]) == (True, False)
    assert old.coming[never]["given_up"]
    assert old.coming[never]["problem"]

    def images():
        return {each: image for image in site.call("cache")["images"] for each in image["uris"]}

    there = eventually(lambda: images().get(later))
    eventually(lambda: images()[later]["pinned"])
    assert there["sha256"] == sha256(site.images / "later.raw")


def test_running_vm_is_shut_down_and_saved(site):
    site.until_counted("running")
    assert site.call("shutdown", name="running")["success"]
    reply = ended(site, "running")
    assert reply["halt_cause"] == "operator shutdown"
    second = site.saved / "running-b.raw"
    assert (read_counter(site.saved_file("running"), "qcow2"), second.read_bytes()[:7]) == (1, b"payload")
    assert reply["disks"]["hda"]["sha256"] == sha256(site.saved_file("running"))
    assert reply["disks"]["hdb"]["sha256"] == sha256(second)


def test_suspended_vm_resumes(site):
    assert site.call("resume", name="suspended")["success"]
    assert site.call("status", name="suspended")["status"] == "running"
    site.until_counted("suspended")
    ended(site, "suspended")
    assert read_counter(site.saved_file("suspended"), "qcow2") == 1


def test_kept_vm_boots_from_its_own_disk(site):
    assert site.start("kept", site.images / "guest.raw", uuid=number(4), generation=40)["success"]
    site.wait("kept", "running")
    site.until_counted("kept")
    ended(site, "kept")
    assert read_counter(site.saved_file("kept"), "qcow2") == 3


def test_unsaved_disk_is_saved_when_it_can_be(site, old):
    (site.saved / "away").mkdir()
    assert site.call("save_retry", uuid=number(5))["success"]
    reply = site.wait("unsavable", "halted")
    saved = site.saved / "away/unsavable.qcow2"
    assert read_counter(saved, "qcow2") == 5
    assert reply["disks"]["hda"]["sha256"] == sha256(saved)
    assert not old.failed.exists()


def test_fetching_vm_continues(site):
    site.wait("fetching", "running")
    site.until_counted("fetching")
    ended(site, "fetching")
    assert read_counter(site.saved_file("fetching"), "qcow2") == 1


def test_remaining_vms_can_be_destroyed(site):
    for name in ("installing", "unstartable"):
        uuid = site.call("status", name=name)["uuid"]
        assert site.call("destroy", name=name)["success"]
        assert uuid not in virsh("list", "--all", "--uuid")
