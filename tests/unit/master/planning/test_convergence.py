"""Any desired and observed state converges in virtual time, with lost messages and jumps of the clock: I10, I20."""

import dataclasses
from datetime import timedelta
from enum import StrEnum

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from master_service.planning.actions import action_of
from master_service.planning.decision import DecisionKind, backoff
from master_service.planning.observed import ObservedStatus, observed_status
from master_service.planning.planner import decide
from master_service.planning.vm import VM, DesiredStatus, DispatchState, ObservedState, VMProblem
from master_service.policy.poll_digest import apply_event, apply_poll
from tests.functional.master.fakes import FakeVM, FakeWorker
from tests.unit.master.builders import NOW, REPORTS, SETTINGS, SPEC, UUID, vm
from worker_service.contract import ListReply

POLL_EVERY = timedelta(seconds=SETTINGS.poll_interval_s)
WINDOW = timedelta(seconds=SETTINGS.restart_window_s)
LONGEST = timedelta(seconds=SETTINGS.retry_cap_s)
PASSES = 60
JUMPS = [timedelta(**actor) for actor in ({"days": -1}, {"days": 1}, {"hours": -1}, {"hours": 1}, {"seconds": -90})]

AS_DESIRED = {
    DesiredStatus.RUNNING: {ObservedStatus.RUNNING, ObservedStatus.INSTALLING},
    DesiredStatus.PAUSED: {ObservedStatus.SUSPENDED},
    DesiredStatus.HALTED: {
        ObservedStatus.HALTED,
        ObservedStatus.CRASHED,
        ObservedStatus.UNREPORTED,
        ObservedStatus.ABSENT,
        ObservedStatus.GONE,
        ObservedStatus.FAILED_TO_START,
    },
}


class Fate(StrEnum):
    """The fate of a message on its way."""

    ARRIVES = "arrives"
    LOST = "lost"
    TWICE = "arrives twice"
    LATE = "arrives after later ones"


class World:
    """One VM and its worker. Commands, their answers, events and lists are messages; each may have another fate."""

    def __init__(self, subject: VM, worker: FakeWorker, fates: list[Fate], *, deaf: bool = False, jumps=None):
        self.vm, self.worker, self.fates, self.now = subject, worker, fates, NOW
        self.jumps = jumps or {}
        """step -> by how much the master's wall clock jumps before it."""
        self.step = 0
        self.deaf = deaf
        """Only lists are heard: no event and no answer arrives."""
        self.late = []
        self.commands = []

    def run(self):
        for _ in range(PASSES):
            self.jump()
            self.dispatch()
            self.jump()
            self.advance()
            self.now += POLL_EVERY / 2
            self.jump()
            self.advance()
            self.arrive_late()
            self.jump()
            self.poll()
            self.now += POLL_EVERY / 2

    def jump(self):
        self.now += self.jumps.get(self.step, timedelta())
        self.step += 1

    def post(self, arrive, *message):
        """Send a message, which may be lost, delayed or repeated."""
        match self.fates.pop() if self.fates else Fate.ARRIVES:
            case Fate.LOST:
                pass
            case Fate.LATE:
                self.late.append((arrive, message))
            case Fate.TWICE:
                arrive(*message)
                arrive(*message)
            case Fate.ARRIVES:
                arrive(*message)

    def arrive_late(self):
        late, self.late = self.late, []
        for arrive, message in reversed(late):
            arrive(*message)

    def dispatch(self):
        made = decide(self.vm, self.now, SETTINGS)
        assumed = self.vm.desired
        match made.kind:
            case DecisionKind.FOLLOW:
                self.change(desired=dataclasses.replace(assumed, status=DesiredStatus.HALTED))
            case DecisionKind.CONFIRM:
                self.change(desired=dataclasses.replace(assumed, destroyed_at=self.now))
            case DecisionKind.SEND:
                self.send(made.command)
        if made.kind in (DecisionKind.FOLLOW, DecisionKind.CONFIRM, DecisionKind.SEND):
            # Planned twice is planned once: the same is not decided again, nor is the same command sent again.
            again = decide(self.vm, self.now, SETTINGS)
            assert (again.kind, again.command) != (made.kind, made.command)

    def send(self, command):
        wait = self.back_off(self.vm.current_dispatch, command, 1)
        user_generation = self.vm.desired.user_generation
        push = self.vm.current_dispatch.sending(
            command, user_generation=user_generation, now=self.now, again_in=wait, window=WINDOW
        )
        self.change(
            desired=dataclasses.replace(self.vm.desired, worker="w1", generation=command.generation), dispatch=push
        )
        self.commands.append(command)
        assert decide(self.vm, self.now, SETTINGS).kind is not DecisionKind.SEND  # two rounds at one time send once
        self.post(self.apply, command, msgspec.to_builtins(action_of(self.vm, command)))

    def apply(self, command, action):
        """At the worker."""
        result = self.worker.apply([action])["results"][0]
        self.sent()
        if not self.deaf:
            self.post(self.answered, command, result)

    def advance(self):
        for _ in self.worker.advance():
            self.sent()

    def sent(self):
        """The worker's event about the VM."""
        if UUID in self.worker.vms and not self.deaf:
            self.post(self.heard, self.worker.status(UUID))

    def heard(self, status):
        real = apply_event(self.vm, "w1", status, self.now)
        if real is not None:
            self.change(observed=real)

    def answered(self, command, result):
        push = self.vm.dispatch
        if not push.is_about(command.verb, command.generation):
            return
        if result["success"]:
            self.change(dispatch=push.with_accepted(command.generation))
            if command.verb == "destroy":
                self.change(observed=self.vm.observed.mark_destroyed(command.generation, self.now))
        else:
            problem = VMProblem(code=result["code"], message="")
            self.change(dispatch=push.refused(problem, now=self.now, again_in=self.back_off(push, command, 0), by="w1"))

    def back_off(self, push, command, more):
        return backoff(push.attempts_of(command.verb, command.generation) + more, UUID, SETTINGS)

    def poll(self):
        self.vm = self.vm.clamp_to(self.now, LONGEST)
        if self.vm.desired.worker is not None:
            self.post(self.listed, msgspec.convert(self.worker.listing(), ListReply), self.now)

    def listed(self, reply, requested_at):
        worker = self.vm.worker or vm().worker
        if worker.seen_at is not None and worker.seen_at > requested_at:
            return  # polls take turns: an answer to an older one was given up
        worker = dataclasses.replace(worker, seen_at=requested_at)
        self.change(observed=apply_poll(self.vm, reply, requested_at), worker=worker)

    def change(self, **parts):
        self.vm = dataclasses.replace(self.vm, **parts)


@st.composite
def worlds(draw):
    desired = draw(st.sampled_from(list(DesiredStatus)))
    generation = draw(st.integers(1, 4))
    on_worker = draw(st.sampled_from([None, "buried", *REPORTS]))
    sent = draw(st.integers(1, 6))
    worker = FakeWorker()
    if on_worker == "buried":
        worker.tombstones[UUID] = sent
    elif on_worker is not None:
        status, cause = REPORTS[on_worker]
        worker.vms[UUID] = FakeVM(spec=SPEC, generation=sent, status=status, halt_cause=cause)
    believed = vm(desired, draw(st.sampled_from(list(REPORTS))), generation=generation, taken=draw(st.integers(1, 6)))
    real = draw(st.sampled_from([ObservedState(), believed.observed]))
    subject = dataclasses.replace(believed, observed=real, dispatch=DispatchState())
    fates = draw(st.lists(st.sampled_from(Fate), max_size=16))
    jumps = draw(st.dictionaries(st.integers(0, 60), st.sampled_from(JUMPS), max_size=4))
    return World(subject, worker, fates, deaf=draw(st.booleans()), jumps=jumps)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(world=worlds())
def test_any_desired_and_observed_state_converge(world):
    world.run()
    end = decide(world.vm, world.now, SETTINGS)
    assumed = world.vm.desired
    if assumed.status is DesiredStatus.DESTROYED:
        assert assumed.destroyed_at is not None
        assert UUID not in world.worker.vms
    elif end.kind is not DecisionKind.REPORT:
        assert end.kind is DecisionKind.NOTHING, end
        assert observed_status(world.vm) in AS_DESIRED[assumed.status] | (
            {ObservedStatus.FAILED_TO_SAVE} if assumed.status is DesiredStatus.HALTED else set()
        )
    # Nothing goes in circles: a dozen faults and a handful of commands, each with its back-off.
    assert len(world.commands) <= 40
    # A second run finds nothing to do.
    sent = len(world.commands)
    world.run()
    assert len(world.commands) == sent


@given(desired=st.sampled_from([w for w in DesiredStatus if w is not DesiredStatus.DESTROYED]), sent=st.integers(1, 5))
def test_vm_is_never_destroyed_without_a_request(desired, sent):
    """A master whose database is older than the worker (restored from a backup) destroys nothing."""
    for observed, (status, cause) in REPORTS.items():
        worker = FakeWorker(vms={UUID: FakeVM(spec=SPEC, generation=sent, status=status, halt_cause=cause)})
        world = World(vm(desired, observed, generation=1, taken=1), worker, [])
        world.run()
        assert all(command.verb != "destroy" for command in world.commands)
        assert UUID in worker.vms
