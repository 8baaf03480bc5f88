"""What the hypervisors of workers cannot do is refused at once, and a VM is placed where it can run."""

import msgspec
import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import ROOMY, FakeSalt, FakeWorker
from worker_service.contract import Capabilities, Code

FEW = Capabilities(networks=("none",), cd_change=False, suspend=False, console="", version="7.2")
LACK = "x1 offers no network 'user' on xen: use none"
ONE_IN = "each that has xen offers no network 'user' on xen: use none"
XEN = {"hypervisor": "xen", "network": "none"}
CD = {"cd_image": "file:///srv/images/cd.iso"}


def with_drivers(**drivers):
    return msgspec.structs.replace(ROOMY, hypervisors=tuple(drivers), drivers=drivers)


@pytest.fixture
def salt():
    """The xen worker comes later in the alphabet and has less memory: placement would prefer the other."""
    xen = msgspec.structs.replace(with_drivers(xen=FEW), mem_total=4096, mem_free=4096)
    return FakeSalt(FakeWorker("k1", capacity=with_drivers(kvm=Capabilities())), FakeWorker("x1", capacity=xen))


def plans(salt):
    return [plan for worker in salt.workers.values() for plan in worker.plans]


@on_both
async def test_vm_is_placed_on_the_worker_with_its_driver(world):
    await world.create(**XEN)
    await world.create(name="web02")
    assert (await world.status("running"))["worker"] == "x1"
    assert (await world.status("running", "web02"))["worker"] == "k1"


@pytest.mark.parametrize("query", ["", "?dry_run=true"])
async def test_create_that_no_worker_can_run_is_refused(world, query):
    await world.person("uma")
    await world.person("ola", Role.OPERATOR)
    for name, why in (
        ("uma", f"no worker can run it: {ONE_IN}"),
        ("ola", f"k1 has no xen driver (it has kvm); {LACK}"),
    ):
        answer = await world.http.post(f"/vmachines{query}", json=SPEC | {"hypervisor": "xen"}, headers=world.of(name))
        assert (answer.status_code, answer.json()["code"]) == (409, Code.UNSUPPORTED)
        assert answer.json()["detail"] == f"web01 cannot run: {why}."
        pinned = await world.http.post(
            f"/vmachines{query}", json=SPEC | {"worker": "x1", "hypervisor": "xen"}, headers=world.of(name)
        )
        assert pinned.json()["detail"] == f"web01 cannot run: {LACK}."
    assert (await world.http.get("/vmachines")).json() == []
    assert plans(world.salt) == []


async def test_start_that_its_worker_can_never_do_is_refused(world):
    await world.create(**XEN, run_policy="manual", **CD)
    world.salt.workers["x1"].capacity = with_drivers(xen=msgspec.structs.replace(FEW, cd=False))
    await world.poll()
    for query in ({}, {"dry_run": "true"}):
        answer = await world.http.post("/vmachines/web01/start", params=query)
        assert (answer.status_code, answer.json()["code"]) == (409, Code.UNSUPPORTED)
        assert "x1 offers no CD drive on xen: leave out cd_image" in answer.json()["detail"]
    assert (await world.show())["desired"] == "halted"


async def test_driver_with_a_problem_lets_its_vms_wait(world):
    broken = msgspec.structs.replace(FEW, problem="libvirtd does not answer: systemctl start libvirtd")
    world.salt.workers["x1"].capacity = with_drivers(xen=broken)
    await world.poll()
    await world.create(**XEN)
    await world.quiet()
    waiting = await world.show()
    assert (waiting["status"], waiting["worker"]) == ("pending", None)
    assert "x1 starts no VM on xen now: libvirtd does not answer: systemctl start libvirtd" in waiting["reason"]
    [planned] = (await world.http.get("/plan")).json()
    assert "libvirtd does not answer" in planned["reason"]
    world.salt.workers["x1"].capacity = with_drivers(xen=FEW)
    await world.poll()
    assert (await world.status("running"))["worker"] == "x1"


@pytest.mark.parametrize(
    ("path", "body", "why"),
    [
        ("modify", CD, "cannot change the CD of a running VM. Shut it down, change it, and start the VM again."),
        ("suspend", None, "cannot pause a VM in memory. Shut it down instead."),
        ("resume", None, "cannot pause a VM in memory. Shut it down instead."),
    ],
)
async def test_verb_that_its_hypervisor_lacks_is_refused(world, path, body, why):
    await world.create(**XEN)
    before = await world.status("running")
    jobs = len(world.salt.jobs)
    for query in ({}, {"dry_run": "true"}):
        answer = await world.http.post(f"/vmachines/web01/{path}", params=query, json=body)
        assert (answer.status_code, answer.json()["code"]) == (409, Code.UNSUPPORTED)
        assert answer.json()["detail"] == f"web01 on x1: xen {why}"
    assert (await world.show())["version"] == before["version"]
    assert len(world.salt.jobs) == jobs


async def test_console_that_its_hypervisor_lacks_is_refused(world):
    await world.create(**XEN)
    await world.status("running")
    answer = await world.http.post("/vmachines/web01/console")
    assert (answer.status_code, answer.json()["code"]) == (409, Code.UNSUPPORTED)
    assert "web01 on x1: xen shows no screen of this VM. Its console.log" in answer.json()["detail"]
    assert world.salt.workers["x1"].tickets == []
    world.salt.workers["x1"].capacity = with_drivers(xen=msgspec.structs.replace(FEW, console="screenshot"))
    await world.poll()
    assert (await world.http.post("/vmachines/web01/console")).status_code == 200


async def test_cd_of_a_vm_that_is_off_is_changed(world):
    await world.create(**XEN, run_policy="manual")
    assert (await world.ask("modify", json=CD))["spec"]["cd_image"] == CD["cd_image"]


async def test_change_is_put_to_the_vms_own_hypervisor(world):
    await world.create(**XEN, sys_arch="i386")
    await world.status("running")
    await world.ask("modify", json={"hda_save_to": "file:/srv/saved/other.qcow2"})
    request = world.salt.workers["x1"].plans[-1]
    assert (request.hypervisor, request.sys_arch, request.hda_save_to) == ("xen", "i386", "file:/srv/saved/other.qcow2")


async def test_older_worker_decides_by_itself(world):
    await world.create(worker="k1")
    await world.status("running")
    world.salt.workers["k1"].capacity = ROOMY
    await world.poll()
    assert (await world.ask("suspend", timeout_s=0))["vmachine"]["desired"] == "paused"
    assert (await world.ask("modify", json=CD, timeout_s=0))["spec"]["cd_image"] == CD["cd_image"]
    assert (await world.http.post("/vmachines/web01/console")).status_code == 200
