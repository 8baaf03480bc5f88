"""Further workers of the stack: how they are chosen, their parts and their pillar."""

import pytest

from devstack import more_workers, process
from devstack.console import Trouble
from devstack.hosts import vbox
from devstack.layout import Layout
from master_service.core.settings import Settings


@pytest.fixture
def layout(tmp_path):
    return Layout(var=tmp_path)


@pytest.mark.parametrize(
    ("text", "chosen"), [("", ()), ("kvm", ()), ("xen", ("xen",)), ("kvm,xen xen", ("xen",)), ("vbox", ("vbox",))]
)
def test_hypervisor_of_make_run_chooses_workers(text, chosen):
    assert more_workers.chosen({"HYPERVISOR": text}) == chosen
    assert more_workers.chosen({}) == ()


def test_unknown_hypervisor_is_named_with_those_that_are():
    with pytest.raises(Trouble, match=r"^HYPERVISOR=zen is not known: name one of kvm, xen, vbox"):
        more_workers.chosen({"HYPERVISOR": "zen"})


def test_stack_without_further_workers_has_no_more_parts(layout):
    assert more_workers.parts_of(layout, ()) == ()


def test_started_workers_are_known_to_later_commands(layout):
    assert more_workers.recorded(layout) == ()
    process.remember(layout.identity("xen1"), process.Identity(1, 1, "boot"))
    assert more_workers.recorded(layout) == ("xen",)
    parts = more_workers.parts_of(layout, more_workers.recorded(layout))
    assert [(part.name, part.ports) for part in parts] == [("files", (8082,)), ("xen1", (8083, 8084))]
    process.remember(layout.identity("vbox1"), process.Identity(1, 1, "boot"))
    parts = more_workers.parts_of(layout, more_workers.recorded(layout))
    assert [(part.name, part.ports) for part in parts[2:]] == [("vbox1", (8085, 8086))]


def test_master_waits_longer_for_emulated_workers_alone(layout):
    assert more_workers.patient(layout, ()) == layout
    patient = more_workers.patient(Layout(var=layout.var, master_settings={"max_vms": 7}), ("xen",))
    assert patient.master_settings["max_vms"] == 7
    for name in ("poll_timeout_s", "retry_base_s", "action_timeout_s"):
        assert patient.master_settings[name] > Settings.model_fields[name].default


def test_pillar_names_this_machine_as_hosts_reach_it(layout):
    layout.worker_token.write_text("secret\n")
    pillar = more_workers.pillar(layout, "xen")
    assert (pillar["hypervisors"], pillar["minion"]["id"]) == (["xen"], "xen1")
    assert pillar["minion"]["master"] == "10.0.2.2"
    assert pillar["settings"]["images"]["save_hosts"] == ["10.0.2.2:8082"]
    assert "secret" not in str(pillar)


def test_pillar_needs_no_package_that_its_image_lacks(layout):
    layout.worker_token.write_text("secret\n")
    assert set(more_workers.pillar(layout, "vbox")["packages"]) <= {"ca-certificates", *vbox.PACKAGES}
