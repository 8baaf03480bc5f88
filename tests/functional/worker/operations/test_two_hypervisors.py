"""Two hypervisors on one worker: they share its capacity, and each has its own guests. Both are fakes."""

import pytest

from tests.lib import fake_hypervisor
from tests.lib.fake_hypervisor import SCHEME, Domain, Fake, FakeVbox
from tests.lib.support import Site, a_site


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    domains = tmp_path_factory.mktemp("domains")
    with fake_hypervisor.installed(), a_site(hypervisors=["kvm", "vbox"], libvirt_uri=f"{SCHEME}{domains}") as made:
        yield made


def start(site: Site, hypervisor, image, **parameters):
    name = f"on-{hypervisor}"
    reply = site.start(name, image, hypervisor=hypervisor, network="none", **parameters)
    assert reply["success"], reply
    assert site.wait(name, "running", "failed to start")["status"] == "running"
    return reply["uuid"]


def test_capacity_and_list_have_guests_of_both(site, bootchain):
    image = bootchain("spin.raw", folder=site.images, variant="spin")
    before = site.call("list")["capacity"]
    assert before["hypervisors"] == ["kvm", "vbox"]
    uuids = {name: start(site, name, image, mem_size=size) for name, size in (("kvm", 48), ("vbox", 80))}
    drivers = {"kvm": Fake(site.worker.settings), "vbox": FakeVbox(site.worker.settings)}
    for name, driver in drivers.items():
        assert list(driver.domains()) == [uuids[name]]
        driver.define(Domain(uuid=f"6d6c7f0e-0000-4000-8000-00000000000{len(name)}", name=f"foreign-{name}"))
    listed = site.call("list")
    assert {vm["name"]: (vm["hypervisor"], vm["status"]) for vm in listed["vmachines"]} == {
        "on-kvm": ("kvm", "running"),
        "on-vbox": ("vbox", "running"),
    }
    assert {each["name"] for each in listed["foreign"]} == {"foreign-kvm", "foreign-vbox"}
    capacity = listed["capacity"]
    assert capacity["taken"]["on"] == {"vms": 2, "cpus": 2, "mem": 128}
    assert (capacity["mem_total"], capacity["mem_free"]) == (before["mem_total"], before["mem_free"] - 128)
    refused = site.start("large", image, hypervisor="vbox", network="none", mem_size=capacity["mem_free"] + 1)
    assert (refused["success"], refused["code"]) == (False, "no_room")

    drivers["vbox"].power_off(uuids["vbox"])  # the watcher sees the end of one, and the other runs on
    kept = site.until(lambda: site.call("status", name="on-vbox"), lambda reply: reply["disks"]["hda"].get("kept"))
    assert kept["halt_cause"] == "powered off from outside"
    assert site.call("status", name="on-kvm")["status"] == "running"


def test_one_without_guests_may_be_silent(site, bootchain):
    assert site.call("destroy", name="on-vbox")["success"]
    FakeVbox(site.worker.settings).stop_toolstack()
    assert [vm["name"] for vm in site.call("list")["vmachines"]] == ["on-kvm"]
    assert "does not answer" in site.call("capabilities")["hypervisors"]["vbox"]["problem"]
    assert site.call("destroy", name="on-kvm")["success"]
