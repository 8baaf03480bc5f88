"""`saltern list --unmanaged` and `saltern adopt`: what is there past the master, and what becomes of it."""

import json
from uuid import uuid4

import pytest

from tests.functional.master.fakes import FakeSalt, FakeVM, FakeWorker
from worker_service.contract import Spec, Status


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2"))


@pytest.fixture
async def strays(served):
    """`web01` on both workers and `db01` on one, started there; the user ann."""
    await served.person("ann")
    made = {}
    for worker, name in (("w1", "web01"), ("w2", "web01"), ("w2", "db01")):
        uuid = made[worker, name] = str(uuid4())
        spec = Spec(name=name, hda_image="file:/srv/images/web.qcow2", mem_size=64)
        served.salt.workers[worker].vms[uuid] = FakeVM(spec, 0, Status.RUNNING)
    await served.poll()
    return made


async def test_unmanaged_vms_are_listed_with_their_worker(served, saltern, strays):
    code, out, _ = await saltern("list", "--unmanaged")
    assert (code, out.split("\n")[0].split()) == (0, ["NAME", "STATUS", "WORKER", "SINCE", "UUID"])
    rows = {tuple(line.split()[:3]) for line in out.splitlines()[1:]}
    assert rows == {("web01", "running", "w1"), ("web01", "running", "w2"), ("db01", "running", "w2")}
    code, out, _ = await saltern("list", "--unmanaged", "--worker", "w1", "-o", "json")
    (only,) = json.loads(out)
    assert (only["uuid"], only["since"][:10]) == (strays["w1", "web01"], "2026-01-01")
    assert (await saltern("list"))[1].count("web01") == 0
    for words, expected in ((("--worker", "w9"), 3), (("--owner", "ann"), 2)):
        assert (await saltern("list", "--unmanaged", *words))[0] == expected


async def test_adopted_vm_is_managed_and_no_longer_unmanaged(served, saltern, strays):
    code, out, _ = await saltern("adopt", "db01", "--owner", "ann", "--dry-run")
    assert (code, "Nothing was changed." in out) == (0, True)
    assert await saltern("adopt", "db01", "--owner", "ann") == (
        0, "db01 on w2 belongs to ann now. It goes on as it is.\n", ""
    )  # fmt: skip
    code, _, err = await saltern("adopt", "web01", "--owner", "ann")
    assert (code, "web01 is on w1, w2. Give one of them with --worker." in err) == (2, True)
    assert (await saltern("adopt", strays["w1", "web01"], "--owner", "ann"))[0] == 0
    # Two VMs cannot have one name: the other one is left to its worker.
    code, _, err = await saltern("adopt", "web01", "--owner", "ann", "--worker", "w2")
    assert (code, "There is a VM named web01 already" in err, "leave this one to w2" in err) == (1, True, True)
    code, _, err = await saltern("adopt", "db01", "--owner", "ann")
    assert (code, "There is no unmanaged VM db01." in err) == (3, True)
    await served.http.post("/vmachines/web01/destroy", params={"timeout_s": 0})
    await served.quiet()
    assert (await saltern("adopt", "web01", "--owner", "ann", "--worker", "w2"))[0] == 0
    assert await saltern("list", "--unmanaged") == (0, "This master manages all VMs on its workers.\n", "")
