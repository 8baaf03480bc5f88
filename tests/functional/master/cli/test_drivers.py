"""The hypervisors of workers on the command line: what they can do, what does not work, and what is refused."""

import json

import msgspec
import pytest

from master_service.api.protocol.capabilities import DriverView
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeWorker
from worker_service.contract import Capabilities

IMAGE = ("--hda-image", "/srv/images/web.qcow2", "--hda-save-to", "")
FEW = Capabilities(version="4.17", acceleration="hvm", networks=("none",), cd_change=False, suspend=False, console="")
AWAY = "This host does not run on Xen. Boot it with Xen."


def worker(name, **drivers):
    return FakeWorker(name, capacity=msgspec.structs.replace(ROOMY, hypervisors=tuple(drivers), drivers=drivers))


@pytest.fixture
def salt():
    kvm = Capabilities(version="7.2", acceleration="tcg", reason="KVM hangs here.")
    return FakeSalt(worker("k1", kvm=kvm, xen=Capabilities(problem=AWAY)), worker("x1", xen=FEW))


def test_view_of_a_driver_has_the_fields_of_the_contract():
    assert set(DriverView.model_fields) == set(Capabilities.__struct_fields__)


async def test_workers_are_listed_with_their_drivers(saltern):
    _, out, _ = await saltern("workers", "--columns", "worker,drivers,runs by,console,networks")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()[1:]}
    assert rows == {
        "k1": "kvm, xen (does not work) kvm: tcg; xen: - kvm: vnc; xen: vnc "
        "kvm: user, none, network, bridge; xen: user, none, network, bridge",
        "x1": "xen xen: hvm xen: - xen: none",
    }
    assert "kvm, xen (does not work)" in (await saltern("workers"))[1]
    assert "kvm: tcg" in (await saltern("workers", "-o", "wide"))[1]


async def test_worker_is_shown_with_its_table(saltern):
    code, out, err = await saltern("workers", "show", "k1")
    rows = {line.split()[0]: " ".join(line.split()[1:]) for line in out.splitlines()}
    assert code == 0, err
    assert (rows["id"], rows["mem_total"], rows["capability"]) == ("k1", "8192", "kvm xen")
    assert (rows["problem"], rows["reason"]) == (f"- {AWAY}", "KVM hangs here. -")
    assert (rows["suspend"], rows["console"]) == ("yes yes", "vnc vnc")
    shown = json.loads((await saltern("workers", "show", "x1", "-o", "json"))[1])
    assert shown["drivers"]["xen"]["networks"] == ["none"]
    assert "drivers" not in shown["capacity"]
    assert (await saltern("workers", "show", "x1", "-o", "name"))[1] == "x1\n"
    assert (await saltern("workers", "show", "ghost"))[0] == 3


async def test_vm_shows_the_kind_of_its_screen(saltern, served):
    pictures = msgspec.structs.replace(FEW, console="screenshot")
    served.salt.workers["x1"].capacity = worker("x1", xen=pictures).capacity
    await served.poll()
    made = await served.create(hypervisor="xen", network="none")
    assert made["console"] == ""
    assert (await served.status("running"))["console"] == "screenshot"
    assert "saltern console-url web01 (pictures)" in (await saltern("list", "-o", "wide"))[1]
    rows = {line.split()[0]: line.split()[1:] for line in (await saltern("show", "web01"))[1].splitlines()}
    assert (rows["console"], rows["vnc"]) == (["screenshot"], ["saltern", "console-url", "web01"])
    served.salt.workers["x1"].capacity = worker("x1", xen=FEW).capacity
    await served.poll()
    without = await served.show()
    assert (without["console"], without["lacks"]) == ("", ["console", "cd_change", "suspend"])
    rows = {line.split()[0]: line.split()[1:] for line in (await saltern("show", "web01"))[1].splitlines()}
    assert rows["vnc"] == ["-"]


async def test_doctor_finds_a_driver_that_does_not_work(saltern, served):
    code, out, _ = await saltern("doctor")
    assert (code, "FAULT worker k1: its hypervisor xen does not work: This host does not run on Xen." in out) == (
        1,
        True,
    )
    assert "ok    worker x1: xen (hvm); version" in out


async def test_what_no_worker_can_do_is_said_with_options(saltern, served, tmp_path):
    create = ("create", "web01", *IMAGE, "--hypervisor", "vbox")
    for words in (create, (*create, "--dry-run")):
        code, _, err = await saltern(*words)
        assert (code, "x1 has no vbox driver (it has xen)" in err) == (1, True), err
    served.salt.workers["x1"].capacity = worker("x1", xen=msgspec.structs.replace(FEW, cd=False)).capacity
    await served.poll()
    pinned = ("--worker", "x1", "--hypervisor", "xen", "--network", "none", "--cd-image", "/srv/cd.iso")
    _, _, err = await saltern("create", "web01", *IMAGE, *pinned)
    assert "x1 offers no CD drive on xen: leave out --cd-image" in err
    fields = (
        "hypervisor: xen, network: none, worker: x1, hda_image: 'file:/srv/web.qcow2', cd_image: 'file:/srv/cd.iso'"
    )
    file = tmp_path / "vms.yaml"
    file.write_text(f"vmachines: [{{name: web01, {fields}}}]")
    for words in (("--dry-run",), ("--yes",)):
        code, _, err = await saltern("apply", "-f", str(file), *words)
        assert (code, "x1 offers no CD drive on xen: leave out cd_image" in err) == (1, True), err
    assert (await served.http.get("/vmachines")).json() == []


async def test_file_that_a_hypervisor_cannot_follow_changes_nothing(saltern, served, tmp_path):
    fields = {"hypervisor": "xen", "network": "none", "worker": "x1"}
    await served.create(**fields)
    before = await served.status("running")
    file = tmp_path / "vms.yaml"
    for change, why in (
        ({"state": "paused"}, "xen cannot pause a VM in memory. Shut it down instead"),
        ({"cd_image": "file:///srv/cd.iso"}, "xen cannot change the CD of a running VM"),
    ):
        entry = {"name": "web01", "hda_image": "file:/srv/images/web.qcow2"} | fields | change
        file.write_text(json.dumps({"vmachines": [entry, {"name": "new", "hda_image": "blank:1G", "mem_size": 256}]}))
        code, _, err = await saltern("apply", "-f", str(file), "--yes")
        assert (code, why in err) == (1, True), err
    new = {"name": "new", "hda_image": "blank:1G", "mem_size": 256, "state": "paused"} | fields
    file.write_text(json.dumps({"vmachines": [{"name": "other", "hda_image": "blank:1G"}, new]}))
    for words in (("--dry-run",), ("--yes",)):
        code, _, err = await saltern("apply", "-f", str(file), *words)
        assert (code, "new: xen on x1 cannot pause a VM in memory; use running or halted." in err) == (1, True), err
    assert (await served.show())["version"] == before["version"]
    assert len((await served.http.get("/vmachines")).json()) == 1
