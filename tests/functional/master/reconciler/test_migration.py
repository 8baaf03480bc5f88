"""`virsh migrate` of a VM: the master sends nothing to either worker until it is back, and says where it is."""

import pytest

from tests.functional.master.conftest import running_world
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.functional.master.services.test_vms import verbs
from worker_service.contract import Foreign, HaltCause, Status

pytestmark = on_both


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2"))


async def test_migrated_vm_is_left_alone_until_it_is_back(impatient, salt):
    async with running_world(impatient, salt) as world:
        vm = await world.create(worker="w1")
        await world.status("running")
        w1, w2, sent = salt.workers["w1"], salt.workers["w2"], len(salt.jobs)

        # In the middle of it: the domain is paused on its worker, which is no suspend, and comes up on the other one.
        w1.vms[vm["uuid"]].job = "migration"
        w1.turn(vm["uuid"], Status.SUSPENDED)
        salt.report("w1", vm["uuid"])
        await world.until(lambda found: [p["code"] for p in found["problems"]] == ["busy"])

        # The event alone says that it left; the poll that this asks for says where it is.
        w1.vms[vm["uuid"]].job = ""
        w2.foreign = (Foreign(uuid=vm["uuid"], name="web01", state="running"),)
        w1.turn(vm["uuid"], Status.HALTED, HaltCause.MIGRATED)
        salt.report("w1", vm["uuid"])
        gone = await world.until(lambda found: "elsewhere" in [p["code"] for p in found["problems"]])
        assert gone["reason"].startswith("w2 runs a domain with its uuid")
        for verb in ("shutdown", "start", "destroy"):
            await world.ask(verb, **({"timeout_s": 0} if verb == "destroy" else {}))
            await world.quiet()
        assert len(salt.jobs) == sent

        w2.foreign = ()
        w1.turn(vm["uuid"], Status.RUNNING)
        salt.report("w1", vm["uuid"])
        await world.until(lambda found: found["status"] == "destroyed", vm["uuid"])
        assert verbs(salt)[sent:][-1][0] == "destroy"


async def test_domain_undefined_by_its_migration_is_found(impatient, salt):
    """`virsh migrate --undefinesource`: to its worker it looks like a domain that somebody has removed."""
    async with running_world(impatient, salt) as world:
        vm = await world.create(worker="w1")
        await world.status("running")
        sent = len(salt.jobs)
        salt.workers["w2"].foreign = (Foreign(uuid=vm["uuid"], name="web01", state="running"),)
        salt.workers["w1"].turn(vm["uuid"], Status.HALTED, HaltCause.KILLED)
        salt.report("w1", vm["uuid"])
        await world.until(lambda found: "elsewhere" in [p["code"] for p in found["problems"]])
        await world.poll()
        assert len(salt.jobs) == sent
        # It was powered off there: nobody else runs it, so it is started again.
        salt.workers["w2"].foreign = ()
        await world.poll()
        await world.status("running")
        assert [verb for verb, _ in verbs(salt)[sent:]] == ["start"]
