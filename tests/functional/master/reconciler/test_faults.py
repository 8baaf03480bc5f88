"""Lost, late and false messages: polling alone converges, and each fault has its right name."""

import asyncio

import msgspec
import pytest

from master_service.core.errors import SaltDenied
from master_service.policy.poll_digest import Poll
from master_service.saltapi.client import Event
from tests.functional.master.conftest import eventually, running_world
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeVM, FakeWorker
from tests.functional.master.services.test_vms import verbs
from worker_service.contract import Code, HaltCause, ListReply, Spec, Status, destroyed_tag, event_tag


async def test_polling_converges_with_every_event_lost(world):
    world.salt.lose_events = True
    vm = await world.create()
    await eventually(lambda: bool(world.salt.jobs))
    await world.quiet()
    assert (await world.show())["status"] == "pending"
    await world.poll()
    assert (await world.show())["status"] == "running"
    world.salt.workers["w1"].turn(vm["uuid"], Status.HALTED, HaltCause.GUEST)
    await world.poll()
    halted = await world.show()
    assert (halted["status"], halted["desired"]) == ("halted", "halted")
    waiting = asyncio.create_task(world.ask("destroy"))
    await eventually(lambda: "destroy" in dict(verbs(world.salt)))
    await world.poll()
    assert (await waiting)["done"] is True
    assert [verb for verb, _ in verbs(world.salt)] == ["start", "destroy"]


async def test_blocking_verb_asks_for_a_poll_when_it_hears_nothing(world, monkeypatch):
    monkeypatch.setattr("master_service.services.vms._POLL_AFTER_S", 0.01)
    await world.create()
    await world.status("running")
    world.salt.lose_events = True
    assert (await world.ask("suspend"))["done"] is True


async def test_lost_job_is_sent_again_at_the_same_generation(impatient, salt):
    salt.lose_jobs = True
    async with running_world(impatient, salt) as world:
        await world.create()
        await eventually(lambda: len(salt.jobs) >= 3)
        salt.lose_jobs = False
        await world.status("running")
        assert set(verbs(salt)) == {("start", 1)}


async def test_lost_return_is_neither_failure_nor_success(world):
    world.salt.lose_returns = True
    await world.create()
    assert (await world.status("running"))["problems"] == []


async def test_missing_salt_api_is_reported_and_outlasted(impatient, salt):
    salt.down = True
    async with running_world(impatient, salt) as world:
        await world.create()
        pending = await world.until(lambda vm: vm["problems"] != [])
        assert pending["status"] == "pending"
        assert "w1 has not reported its capacity yet" in pending["reason"]
        salt.down = False
        await world.poll()
        await world.status("running")


async def test_salt_api_going_away_while_a_command_is_sent(impatient, salt):
    async with running_world(impatient, salt) as world:
        await world.create()
        await world.status("running")
        salt.down = True
        await world.ask("shutdown")
        message = await world.until(lambda vm: vm["problems"] != [])
        assert message["problems"][0]["code"] == "salt_unavailable"
        assert message["status"] == "running"
        salt.down = False
        assert (await world.status("halted"))["problems"] == []


SILENCE = (None, False, "Minion did not return. [No response]\nThe minions may not have all")


@pytest.mark.parametrize("silence", SILENCE)
async def test_console_of_a_silent_worker_is_not_there(world, silence):
    world.salt.silence = silence
    await world.create()
    await world.status("running")
    world.salt.silent.add("w1")
    answer = await world.http.post("/vmachines/web01/console", json={"view_only": False})
    assert (answer.status_code, "w1, which has web01, does not answer." in answer.text) == (503, True), answer.text


@pytest.mark.parametrize("silence", SILENCE)
async def test_silent_worker_is_unreachable_and_its_vms_keep_status(world, silence):
    world.salt.silence = silence
    await world.create()
    running = await world.status("running")
    world.salt.silent.add("w1")
    for _ in range(5):
        await world.poll()
    found = await world.show()
    assert (found["status"], found["real"], found["real_at"]) == ("running", "running", running["real_at"])
    assert "worker w1 is unreachable since" in found["reason"]
    (worker,) = (await world.http.get("/workers")).json()
    assert (worker["reachable"], worker["unreachable_since"] is not None) == (False, True)
    assert worker["problem"] is None
    await world.ask("shutdown")
    await world.quiet()
    assert verbs(world.salt) == [("start", 1)]  # no command goes to a silent worker
    world.salt.silent.clear()
    world.salt.heartbeat("w1")  # its watcher is heard again: polled at once
    await world.status("halted")
    (worker,) = (await world.http.get("/workers")).json()
    assert (worker["reachable"], worker["unreachable_since"]) == (True, None)


async def test_one_worker_that_hangs_does_not_delay_the_others(settings):
    salt = FakeSalt(FakeWorker("w1"), FakeWorker("w2"))
    salt.gates["w1"] = asyncio.Event()
    async with running_world(settings, salt) as world:
        await world.create(name="slow", worker="w1")
        await world.create(name="quick", worker="w2")
        await world.status("running", "quick")
        assert (await world.show("slow"))["status"] == "pending"
        salt.gates["w1"].set()
        await world.status("running", "slow")


@pytest.fixture
async def waiting_for_w2(settings):
    """A master whose Salt waits for a silent w2 whenever all are asked, until `salt.gates["w2"]` is set."""
    salt = FakeSalt(FakeWorker("w1"), FakeWorker("w2"))
    async with running_world(settings, salt) as world:
        await world.create(worker="w1")
        await world.status("running")
        salt.silent.add("w2")
        salt.gates["w2"] = asyncio.Event()
        yield world
        salt.gates["w2"].set()


async def test_silent_worker_does_not_delay_replies_of_others(waiting_for_w2):
    world, vm = waiting_for_w2, await waiting_for_w2.show()
    world.salt.workers["w1"].turn(vm["uuid"], Status.HALTED, HaltCause.GUEST)  # and no event tells of it
    polling = asyncio.create_task(world.master.poller.poll())
    assert (await world.status("halted"))["worker"] == "w1"
    assert not polling.done()
    assert (await world.http.get("/workers/w2")).json()["reachable"] is True  # not known yet
    world.salt.gates["w2"].set()
    await polling
    assert (await world.http.get("/workers/w2")).json()["reachable"] is False


async def test_reply_to_one_poll_counts_once(waiting_for_w2):
    """It comes by the stream while Salt waits, and again when Salt returns: one poll, one missed poll."""
    world, vm = waiting_for_w2, await waiting_for_w2.show()
    del world.salt.workers["w1"].vms[vm["uuid"]]

    async def misses():
        (found,) = await world.master.context.store.queries.vms([vm["uuid"]])
        return found.observed.missed_polls

    polling = asyncio.create_task(world.master.poller.poll())
    await eventually(misses)
    world.salt.gates["w2"].set()
    await polling
    assert await misses() == 1


@pytest.mark.parametrize("mark", ["", "another", None, {}, ["a"]])
async def test_reply_to_an_earlier_poll_is_dropped(waiting_for_w2, mark):
    """A late reply to an earlier poll would seem newer than it is."""
    world, vm = waiting_for_w2, await waiting_for_w2.show()
    world.salt.lose_events, polls = True, world.salt.polls
    polling = asyncio.create_task(world.master.poller.poll())
    await eventually(lambda: world.salt.polls > polls)
    world.salt.lose_events = False
    del world.salt.workers["w1"].vms[vm["uuid"]]
    late = world.salt.workers["w1"].sign(world.salt.workers["w1"].listing(), str(mark))
    world.salt.hand_back(["w1"], "vmachines.list", mark, {"w1": late})
    await asyncio.sleep(0.3)
    world.salt.gates["w2"].set()
    await polling
    (found,) = await world.master.context.store.queries.vms([vm["uuid"]])
    assert found.observed.missed_polls == 0


async def test_lost_vm_is_started_again_after_three_missed_polls(world):
    vm = await world.create()
    await world.status("running")
    del world.salt.workers["w1"].vms[vm["uuid"]]
    for misses in (1, 2):
        await world.poll()
        found = await world.show()
        assert found["status"] == "running"
        assert f"w1 did not list it {misses} of 3 times" in found["reason"]
    await world.poll()
    await world.until(lambda found: found["generation"] == 2 and found["status"] == "running")
    assert verbs(world.salt) == [("start", 1), ("start", 2)]


async def test_broken_stream_causes_a_poll_of_everything(world):
    vm = await world.create()
    await world.status("running")
    world.salt.lose_events = True
    world.salt.workers["w1"].turn(vm["uuid"], Status.HALTED, HaltCause.GUEST)
    world.salt.report("w1", vm["uuid"])
    world.salt.lose_events = False
    world.salt.break_stream()
    await world.status("halted")


async def test_stream_without_heartbeats_is_opened_again(world):
    hasty = world.master.context.settings.model_copy(update={"heartbeat_timeout_s": 0.05})
    object.__setattr__(world.master.context, "settings", hasty)
    before = world.salt.polls
    world.salt.heartbeat("w1")  # the last one
    await eventually(lambda: world.salt.polls > before + 2)


@on_both
async def test_restarted_master_goes_on_where_it_was(settings, salt):
    salt.lose_jobs = True
    async with running_world(settings, salt) as world:
        await world.create()
        await eventually(lambda: bool(salt.jobs))
        await world.quiet()
        (vm,) = await world.master.context.store.queries.vms()
    salt.lose_jobs = False
    impatient = settings.model_copy(update={"retry_base_s": 0.01})
    assert vm.dispatch.next_at is not None
    async with running_world(impatient, salt) as world:
        # Its back-off is remembered: a user who does not want to wait asks again.
        assert (await world.ask("destroy"))["done"] is True
        assert salt.workers["w1"].tombstones


@pytest.mark.parametrize("lie", ["another minion", "another uuid", "no status", "no dict"])
async def test_lies_on_the_bus_change_nothing(settings, lie):
    salt = FakeSalt(FakeWorker("w1"), FakeWorker("w2"))
    async with running_world(settings, salt) as world:
        vm = await world.create(worker="w1")
        await world.status("running")
        good = salt.workers["w1"].status(vm["uuid"])
        halted = msgspec.to_builtins(
            msgspec.structs.replace(good, status=Status.HALTED, halt_cause=HaltCause.GUEST, since="2027-01-01")
        )
        tag = event_tag("w1", vm["uuid"], Status.HALTED)
        match lie:
            case "another minion":
                salt.fire("w2", tag, halted)
                salt.fire("w2", event_tag("w2", vm["uuid"], Status.HALTED), halted)
            case "another uuid":
                salt.fire("w1", tag, halted | {"uuid": "0" * 36})
            case "no status":
                salt.fire("w1", tag, halted | {"status": "exploded"})
            case "no dict":
                salt.emit(Event(tag=tag, data={"id": "w1", "data": ["surprise"]}))
        await world.create(name="after", worker="w1")
        await world.status("running", "after")  # by then the lie was read
        assert (await world.show())["status"] == "running"


async def test_events_that_overtake_each_other_do_not_turn_back_time(world):
    vm = await world.create()
    await world.status("running")
    old = msgspec.to_builtins(world.salt.workers["w1"].status(vm["uuid"]))
    await world.ask("shutdown")
    await world.status("halted")
    world.salt.fire("w1", event_tag("w1", vm["uuid"], Status.RUNNING), old)
    await world.create(name="after")
    await world.status("running", "after")
    assert (await world.show())["status"] == "halted"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ("'vmachines.list' is not available.", "has no signature: 'vmachines.list' is not available."),
        ("Traceback (most recent call last):\n  ...\nOSError: broken", "has no signature: OSError: broken"),
        ({"vmachines": "all of them"}, "in an unknown shape"),
        (["?"], "has no signature"),
    ],
)
async def test_nonsense_reply_makes_its_worker_unreachable(world, answer, message, monkeypatch):
    await world.create()
    await world.status("running")
    monkeypatch.setattr(FakeWorker, "listing", lambda _self: answer)
    await world.poll()
    (worker,) = (await world.http.get("/workers")).json()
    assert worker["reachable"] is False
    assert message in worker["problem"]
    found = await world.show()
    assert found["status"] == "running"
    assert message in found["reason"]


@on_both
@pytest.mark.parametrize("bad", [{"generation": 10**12}, {"generation": 10**30}, {"message": "a\0b"}], ids=str)
async def test_unstorable_reply_affects_its_own_worker_only(settings, bad, monkeypatch):
    salt = FakeSalt(FakeWorker("w1"), FakeWorker("w2"))
    async with running_world(settings, salt) as world:
        vm = await world.create(worker="w1")
        await world.create(name="other", worker="w2")
        await world.status("running")
        await world.status("running", "other")
        message = FakeWorker.listing

        def listing(worker):
            answer = message(worker)
            return answer | {"vmachines": [v | bad for v in answer["vmachines"]]} if worker.id == "w1" else answer

        monkeypatch.setattr(FakeWorker, "listing", listing)
        salt.workers["w2"].turn(next(iter(salt.workers["w2"].vms)), Status.SUSPENDED)
        salt.lose_events = True
        await world.poll()
        workers = {worker["id"]: worker for worker in (await world.http.get("/workers")).json()}
        assert (workers["w1"]["reachable"], workers["w2"]["reachable"]) == (False, True)
        assert "its answer cannot be stored" in workers["w1"]["problem"]
        assert (await world.show("other"))["real"] == "suspended"
        # The same in an event is left out, and the next one is read.
        salt.lose_events = False
        good = msgspec.to_builtins(salt.workers["w1"].status(vm["uuid"]))
        salt.fire("w1", event_tag("w1", vm["uuid"], Status.HALTED), good | bad | {"status": "halted"})
        salt.report("w2", next(iter(salt.workers["w2"].vms)))
        await world.until(lambda found: found["real"] == "running", "other")
        assert (await world.show())["real"] == "running"


async def test_unassigned_and_foreign_vms_are_reported_and_untouched(world):
    other = FakeWorker("w1")
    other.apply([{"verb": "start", "uuid": "f" * 36, "generation": 3, "params": {"name": "x", "hda_image": "file:/x"}}])
    world.salt.workers["w1"].vms.update(other.vms)
    await world.poll()
    assert await unassigned(world) == [("f" * 36, "x")]
    assert world.salt.jobs == []
    # Its administrator destroys it there: the event alone says so, and no list has it again.
    del world.salt.workers["w1"].vms["f" * 36]
    world.salt.fire("w1", destroyed_tag("w1", "f" * 36), {"uuid": "f" * 36, "generation": 3})
    await world.quiet()
    assert await unassigned(world) == []


async def test_unmanaged_vm_is_shown_after_its_first_event(world):
    """Nobody has to wait for the next poll, and its later events request none."""
    worker = world.salt.workers["w1"]
    worker.vms["f" * 36] = FakeVM(spec=Spec(name="x", hda_image="file:/x"), generation=1)
    world.salt.report("w1", "f" * 36)
    await eventually(lambda: world.salt.polls > 0 and world.salt.read)
    await world.quiet()
    assert await unassigned(world) == [("f" * 36, "x")]
    polls = world.salt.polls
    worker.turn("f" * 36, Status.RUNNING)
    world.salt.report("w1", "f" * 36)
    await world.quiet()
    assert world.salt.polls == polls


async def unassigned(world):
    (worker,) = (await world.http.get("/workers")).json()
    return [(vm["uuid"], vm["name"]) for vm in worker["unassigned_vms"]]


@on_both
async def test_list_from_before_a_destroy_names_no_unassigned_vm(world):
    """The worker answered the poll, then destroyed the VM. Its answer was stored last, and stayed for five minutes."""
    vm = await world.create()
    await world.status("running")
    requested_at = world.master.context.clock()
    late = msgspec.convert(world.salt.workers["w1"].listing(), ListReply)
    await world.ask("destroy", vm["uuid"])
    await world.master.context.store.observed.poll(Poll(requested_at=requested_at, replies={"w1": late}))
    assert await unassigned(world) == []


async def test_vm_destroyed_on_its_worker_is_to_be_destroyed_here_too(served, saltern):
    """`doctor` reported for ever: `FAULT VM web01: It is running.`"""
    vm = await served.create()
    await served.status("running")
    worker = served.salt.workers["w1"]
    worker.tombstones[vm["uuid"]] = worker.vms.pop(vm["uuid"]).generation
    await served.poll()
    code, out, err = await saltern("doctor")
    assert (code, "It is running" in out) == (1, False), out + err
    assert "FAULT VM web01: failed; it was destroyed on w1, but not through this master" in out
    assert "fix: destroy it here too: saltern destroy web01" in out
    assert (await served.show())["status"] == "failed"
    assert (await saltern("destroy", "web01"))[0] == 0
    assert (await saltern("doctor"))[0] == 0


async def test_crashed_job_shows_nothing_and_is_notified(world):
    """Salt returns a traceback, which no worker has signed."""
    await world.create()
    await world.status("running")
    world.salt.lose_jobs = True
    await world.ask("shutdown")
    await eventually(lambda: len(world.salt.jobs) == 2)
    await world.quiet()
    data = {"id": "w1", "fun": "vmachines.apply", "return": "Traceback\nKeyError: 'x'", "metadata": {"nonce": "n"}}
    world.salt.emit(Event(tag="salt/job/20260101/ret/w1", data=data))
    await world.quiet()
    assert (await world.show())["problems"] == []
    (notice,) = (await world.http.get("/notices")).json()
    assert (notice["kind"], notice["name"]) == ("not_believed", "w1")
    assert "has no signature" in notice["text"]


async def test_worker_with_a_newer_generation_is_polled(world):
    """As after a database was restored from a backup."""
    vm = await world.create()
    await world.status("running")
    world.salt.workers["w1"].vms[vm["uuid"]].generation = 40
    await world.ask("shutdown")
    await world.until(lambda found: any(p["code"] == Code.STALE for p in found["problems"]))
    await world.quiet()  # it was asked
    await world.ask("shutdown")
    halted = await world.status("halted")
    assert halted["generation"] == 41


async def test_readiness_lists_failed_checks(settings, salt):
    async with running_world(settings, salt) as world:
        ready = await world.http.get("http://master/readyz")
        assert (ready.status_code, ready.json()["ready"]) == (200, True)
        salt.down = True
        broken = (await world.http.get("http://master/readyz")).json()
        assert broken["checks"]["salt_api"]["ok"] is False
        salt.down = False
        salt.silent.add("w1")
        await world.poll()
        answer = await world.http.get("http://master/readyz")
        assert answer.status_code == 503
        assert "none answers (w1)" in answer.json()["checks"]["workers"]["message"]


async def test_refused_account_is_named(settings, salt, monkeypatch):
    async def refuse(self):
        raise SaltDenied("salt-api refuses the login of saltern-master.")

    async with running_world(settings, salt) as world:
        monkeypatch.setattr(FakeSalt, "check", refuse)
        message = (await world.http.get("http://master/readyz")).json()["checks"]["salt_api"]["message"]
        assert "salt_api_password_file" in message
