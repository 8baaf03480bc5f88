"""Drivers by name, and hosts with several of them."""

from types import SimpleNamespace

import msgspec
import pytest

from worker_service.contract import Capabilities, Code, Spec
from worker_service.core.errors import BadRequest, HypervisorError, Refused
from worker_service.hypervisor.base import DomainState, Power
from worker_service.hypervisor.registry import driver_class
from worker_service.hypervisor.xen.driver import Xen
from worker_service.operations.status_report import list_reply
from worker_service.state.context import WorkerContext
from worker_service.state.record import Phase, Record
from worker_service.watcher.loop import Watcher

RUNNING = DomainState(Power.RUNNING)


def context(tmp_path, line='hypervisors = ["kvm", "vbox"]'):
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"\n{line}\n')
    return WorkerContext(tmp_path / "worker.toml")


def record(worker, hypervisor):
    now = worker.now()
    spec = Spec(name="a", hda_image="blank:1M", hypervisor=hypervisor)
    return Record(uuid="u", spec=spec, generation=1, phase=Phase.UP, phase_since=now, created_at=now)


def fails(own):
    raise HypervisorError("It is away.")


@pytest.fixture
def worker(tmp_path):
    """A worker whose VirtualBox does not answer."""
    made = context(tmp_path)
    few = Capabilities(networks=("none",), suspend=False)
    made.hypervisors = {
        "kvm": SimpleNamespace(states=lambda own: {"k": RUNNING}, capabilities=Capabilities),
        "vbox": SimpleNamespace(states=fails, capabilities=lambda: few),
    }
    return made


def test_driver_is_found_by_its_name():
    assert driver_class("xen") is Xen  # the fake of another test may stand in for the others


def test_driver_without_vms_may_be_away(worker):
    assert worker.domains([record(worker, "kvm")]) == {"k": RUNNING}


def test_vms_do_not_vanish_with_their_driver(worker):
    with pytest.raises(HypervisorError):
        worker.domains([record(worker, "kvm"), record(worker, "vbox")])


def test_vms_of_a_driver_that_the_settings_lost_do_not_vanish(worker):
    with pytest.raises(HypervisorError, match=r"VMs of xen here.* Add it"):
        worker.domains([record(worker, "xen")])


def away():
    raise HypervisorError("It is away.")


@pytest.mark.parametrize(("names", "total"), [(("kvm", "vbox"), (32, 7936)), (("vbox",), (0, 0))])
def test_list_goes_on_without_a_driver_that_has_no_vms(worker, names, total):
    answering = {"states": lambda own: {}, "cpus": lambda: 2, "memory_mib": lambda: 8192}
    broken = {"states": fails, "cpus": away, "memory_mib": away}
    for name, methods in (("kvm", answering), ("vbox", broken)):
        vars(worker.hypervisors[name]).update(methods, isolation=lambda: (True, ""))
    worker.hypervisors["vbox"].capabilities = lambda: Capabilities(problem="It is away.")
    worker.hypervisors = {name: worker.hypervisors[name] for name in names}
    listed = list_reply(worker, lambda *_: None)
    assert (listed.capacity.cpu_total, listed.capacity.mem_total) == total
    assert listed.capacity.drivers["vbox"].problem == "It is away."


def test_watcher_sees_the_vms_of_the_driver_that_answers(worker):
    watcher = Watcher(worker, "w1", lambda *_: None)
    records = [msgspec.structs.replace(record(worker, name), uuid=name[0]) for name in ("kvm", "vbox")]
    worker.store = SimpleNamespace(all=lambda: records)
    assert [(found.uuid, domain) for found, domain in watcher._observe(None)] == [("k", RUNNING)]


def test_request_beyond_a_driver_is_refused_with_another_one(worker):
    spec = Spec(name="a", hda_image="blank:1M", hypervisor="vbox")
    with pytest.raises(Refused, match=r"no network 'user' on vbox: use none, or hypervisor kvm\.$") as refused:
        worker.require_supported(spec)
    assert refused.value.code is Code.UNSUPPORTED
    with pytest.raises(Refused, match=r"no xen driver. Use hypervisor kvm or vbox"):
        worker.require_supported(Spec(name="a", hda_image="blank:1M", hypervisor="xen"))
    worker.require_supported(Spec(name="a", hda_image="blank:1M"))


def test_command_beyond_a_driver_is_refused(worker):
    worker.require_can(record(worker, "kvm"), "suspend")
    with pytest.raises(Refused, match=r"vbox cannot pause"):
        worker.require_can(record(worker, "vbox"), "suspend")


@pytest.mark.parametrize("line", ["hypervisors = []", 'hypervisors = ["qemu"]'])
def test_settings_name_hypervisors(tmp_path, line):
    with pytest.raises(BadRequest, match=r"hypervisors"):
        context(tmp_path, line)
