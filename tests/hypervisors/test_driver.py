"""Each method of the driver's interface against its hypervisor, on one domain; the rest is in the lives."""

import pytest

from tests.lib.support import eventually, helpers_alive
from worker_service.contract import HaltCause
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.base import ABSENT, Power
from worker_service.steps.start import domain_spec

NONE = "6d6c7f0e-0000-4000-8000-00000000000f"
"""The uuid of no domain."""


@pytest.fixture(scope="module")
def driver(bench, site):
    return bench.driver(site)


def test_capabilities_describe_the_host(bench, site, driver):
    shown = site.call("capabilities")["hypervisors"][bench.name]
    can = driver.capabilities()
    assert (shown["problem"], can.problem) == ("", "")
    assert can.version
    assert can.acceleration
    assert set(can.arches) == {"x86_64", "i386"}
    capacity = site.call("list")["capacity"]
    assert capacity["hypervisors"] == [bench.name]
    assert 0 < capacity["mem_total"] <= driver.memory_mib()
    assert driver.cpus() >= 1
    assert isinstance(driver.isolation()[0], bool)


def test_absent_domain(driver):
    """A domain that has to be gone is gone, and every other act says that it is missing."""
    assert driver.state(NONE) == ABSENT
    assert NONE not in driver.states([NONE])
    assert driver.snapshots(NONE) == ()
    assert driver.console(NONE) is None
    assert driver.logged_end(NONE, "nothing") is None
    assert not driver.guest_agent_answers(NONE)
    driver.power_off(NONE)
    driver.forget(NONE)
    for act in (driver.suspend, driver.resume, driver.shutdown, driver.screenshot, driver.eject_seed):
        with pytest.raises(HypervisorError, match=r"\. .*\.$"):
            act(NONE)
    with pytest.raises(HypervisorError, match=r"\. .*\.$"):
        driver.change_cd(NONE, None)


def test_networks_are_known_or_refused(bench, site, driver, guest):
    """A kind that the hypervisor does not have is refused before anything is made; one that it has needs a network."""
    assert not driver.has_network("none-such")
    given = {**site.defaults, "name": "nets", "hda_image": f"file://{guest('spin')}"}
    for network in ("none", "user", "network=none-such", "bridge=none-such"):
        reply = site.call("plan", **{**given, "network": network})
        kind = network.partition("=")[0]
        known = kind in driver.capabilities().networks and kind == network
        assert (reply.get("fits", False), known or kind in reply["message"]) == (known, True), reply
    assert "nets" not in [vm["name"] for vm in site.call("list")["vmachines"]]


BAD = ("-rf", ".", "..", "a" * 64, "", "a b", "a;b", "<a>", "../a", "a,b=c", "ä", "a\nb", "0", "1e5", NONE)


def test_bad_names_and_strings_reach_no_hypervisor(bench, site, guest):
    before = bench.domains()
    given = {**site.defaults, "hda_image": f"file://{guest('spin')}", "name": "bad"}
    strings = [{"name": name} for name in BAD]
    strings += [{"network": "network='/><x"}, {"network": "bridge=--help"}, {"sys_arch": "x86_64' type='"}]
    strings += [{"mem_size": "32 --x"}, {"cpu_count": 0}, {"hypervisor": "kvm; x"}, {"uuid": "--help"}]
    for each in strings:
        reply = site.call("start", **{**given, **each})
        assert (reply["success"], bool(reply["message"])) == (False, True), (each, reply)
    assert bench.domains() == before
    assert not [vm for vm in site.call("list")["vmachines"] if vm["name"] in {"bad", *BAD}]


def test_life_of_a_domain_call_by_call(bench, site, driver, guest):
    """The worker's verb starts it; then the driver alone acts, and the watcher sleeps."""
    uuid = site.start("driven", guest("spin"))["uuid"]
    site.wait("driven", "running")
    bench.until_counted(site, uuid)
    eventually(lambda: not helpers_alive(site.settings, uuid))
    heard = []
    events = driver.events(heard.append, lambda _: None)
    assert events.ensure()
    assert not events.ensure()

    driver.start(domain_spec(site.worker, site.worker.store.read(uuid)))  # it is on: nothing happens
    state = driver.state(uuid)
    assert (state.power, state.name, state.problem, state.job, state.held) == (Power.RUNNING, "driven", None, "", False)
    assert list(state.disks) == ["hda"]
    (layer, *_) = state.disks["hda"]
    assert layer == site.worker.store.read(uuid).disks["hda"].layers("hda")[0].__class__(
        str(site.worker.store.folder(uuid) / f"hda.{driver.disk_format}"), driver.disk_format
    )
    assert driver.states([uuid])[uuid] == state
    assert driver.states()[uuid].power is Power.RUNNING
    with pytest.raises(HypervisorError, match=r"driven.*runs"):
        driver.forget(uuid)
    assert driver.snapshots(uuid) == ()
    assert not driver.guest_agent_answers(uuid)
    driver.eject_seed(uuid)  # it has none

    if driver.capabilities().suspend:
        for act, power in ((driver.suspend, Power.PAUSED), (driver.resume, Power.RUNNING)):
            for _ in range(2):
                act(uuid)
                assert driver.state(uuid).power is power
    if driver.capabilities().screenshot:
        assert driver.screenshot(uuid)[:8] == b"\x89PNG\r\n\x1a\n"
    console = driver.console(uuid)
    assert ("" if console is None else "vnc" if console.socket else "screenshot") == driver.capabilities().console
    driver.shutdown(uuid)
    assert driver.state(uuid).power is Power.RUNNING  # this guest ignores its button
    assert bench.boots(site, uuid) == 1

    heard.clear()
    driver.power_off(uuid)
    off = driver.state(uuid)
    assert (off.power, off.cause, off.saved_memory) == (Power.OFF, HaltCause.KILLED, False)
    eventually(lambda: uuid in heard)
    driver.power_off(uuid)
    assert not bench.domains()[uuid]
    assert driver.console(uuid) is None
    driver.forget(uuid)
    assert driver.state(uuid) == ABSENT
    assert uuid not in bench.domains()
    assert site.call("destroy", uuid=uuid)["success"]
