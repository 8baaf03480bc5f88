"""Any wanted and any seen converge, in virtual time, whatever is lost on the way: I10."""

import dataclasses
from datetime import timedelta

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from master_service.facts import VM, Push, Real, Wanted, after_list
from master_service.plan import Do, action_of, backoff, decide
from master_service.seen import Seen, seen_of
from tests.functional.master.fakes import FakeVM, FakeWorker
from tests.unit.master.builders import NOW, REPORTS, SETTINGS, SPEC, UUID, vm
from worker_service.contract import ListReply

POLL_EVERY = timedelta(seconds=SETTINGS.poll_interval_s)
PASSES = 60

AS_WANTED = {
    Wanted.RUNNING: {Seen.RUNNING, Seen.INSTALLING},
    Wanted.PAUSED: {Seen.SUSPENDED},
    Wanted.HALTED: {Seen.HALTED, Seen.CRASHED, Seen.UNREPORTED, Seen.ABSENT, Seen.GONE, Seen.FAILED_TO_START},
}


class World:
    """One VM and its worker; only polls are heard, commands and polls may be lost."""

    def __init__(self, subject: VM, worker: FakeWorker, lost: list[bool]):
        self.vm, self.worker, self.lost, self.now = subject, worker, lost, NOW
        self.commands = []

    def run(self):
        for _ in range(PASSES):
            self.push()
            self.worker.advance()
            self.now += POLL_EVERY / 2
            self.worker.advance()
            self.poll()
            self.now += POLL_EVERY / 2

    def push(self):
        made = decide(self.vm, self.now, SETTINGS)
        assumed = self.vm.assumed
        match made.do:
            case Do.FOLLOW:
                self.change(assumed=dataclasses.replace(assumed, wanted=Wanted.HALTED))
            case Do.CONFIRM:
                self.change(assumed=dataclasses.replace(assumed, destroyed_at=self.now))
            case Do.SEND:
                self.send(made.command)

    def send(self, command):
        push = self.vm.current_push
        wait = backoff(push.attempts_of(command.verb, command.generation) + 1, UUID, SETTINGS)
        push = push.sending(command, asked=self.vm.assumed.asked, now=self.now, again_in=wait)
        self.change(assumed=dataclasses.replace(self.vm.assumed, worker="w1", generation=command.generation), push=push)
        self.commands.append(command)
        if not self.is_lost():
            self.worker.apply([msgspec.to_builtins(action_of(self.vm, command))])

    def poll(self):
        if self.vm.assumed.worker is None or self.is_lost():
            return
        reply = msgspec.convert(self.worker.listing(), ListReply)
        worker = dataclasses.replace(vm().worker, seen_at=self.now)
        self.change(real=after_list(self.vm, reply, self.now), worker=worker)

    def change(self, **parts):
        self.vm = dataclasses.replace(self.vm, **parts)

    def is_lost(self):
        return bool(self.lost) and self.lost.pop()


@st.composite
def worlds(draw):
    wanted = draw(st.sampled_from(list(Wanted)))
    generation = draw(st.integers(1, 4))
    on_worker = draw(st.sampled_from([None, "buried", *REPORTS]))
    told = draw(st.integers(1, 6))
    worker = FakeWorker()
    if on_worker == "buried":
        worker.tombstones[UUID] = told
    elif on_worker is not None:
        status, cause = REPORTS[on_worker]
        worker.vms[UUID] = FakeVM(spec=SPEC, generation=told, status=status, halt_cause=cause)
    believed = vm(wanted, draw(st.sampled_from(list(REPORTS))), generation=generation, taken=draw(st.integers(1, 6)))
    real = draw(st.sampled_from([Real(), believed.real]))
    subject = dataclasses.replace(believed, real=real, push=Push())
    return World(subject, worker, draw(st.lists(st.booleans(), max_size=12)))


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds())
def test_any_wanted_and_any_seen_converge(world):
    world.run()
    end = decide(world.vm, world.now, SETTINGS)
    assumed = world.vm.assumed
    if assumed.wanted is Wanted.DESTROYED:
        assert assumed.destroyed_at is not None
        assert UUID not in world.worker.vms
    elif end.do is not Do.REPORT:
        assert end.do is Do.NOTHING, end
        assert seen_of(world.vm) in AS_WANTED[assumed.wanted] | (
            {Seen.FAILED_TO_SAVE} if assumed.wanted is Wanted.HALTED else set()
        )
    # Nothing goes round in circles: a dozen losses and a handful of commands, each with its back-off.
    assert len(world.commands) <= 30
    # A second run finds nothing to do.
    told = len(world.commands)
    world.run()
    assert len(world.commands) == told


@given(wanted=st.sampled_from([w for w in Wanted if w is not Wanted.DESTROYED]), told=st.integers(1, 5))
def test_nothing_is_ever_destroyed_that_nobody_wants_destroyed(wanted, told):
    """A master whose database is older than the worker (restored from a backup) destroys nothing."""
    for seen, (status, cause) in REPORTS.items():
        worker = FakeWorker(vms={UUID: FakeVM(spec=SPEC, generation=told, status=status, halt_cause=cause)})
        world = World(vm(wanted, seen, generation=1, taken=1), worker, [])
        world.run()
        assert all(command.verb != "destroy" for command in world.commands)
        assert UUID in worker.vms
