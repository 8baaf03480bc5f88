"""Dry run: the planner's decision, reported instead of carried out."""

import dataclasses
from datetime import timedelta

from master_service.core.audience import full_text
from master_service.planning.dry_run import NOTHING, changes, dry_run
from master_service.planning.observed import ObservedStatus
from master_service.planning.placement import Candidate
from master_service.planning.planner import DecisionKind
from master_service.planning.vm import Command, DispatchState, VMProblem, Worker
from tests.unit.master.builders import CAPACITY, NOW, SETTINGS, vm
from worker_service.contract import Code


def candidates(*worker_ids):
    return [Candidate(worker=Worker(id=each, key="k", capacity=CAPACITY, seen_at=NOW)) for each in worker_ids]


def refused_by(*worker_ids):
    """A VM whose start the last of these workers has refused for lack of room, after the others had."""
    full = VMProblem(code=Code.NO_ROOM, message="not enough memory")
    push = DispatchState()
    for generation, worker in enumerate(worker_ids, 1):
        command = Command(verb="start", generation=generation, elsewhere=generation > 1)
        push = push.sending(
            command, user_generation=1, now=NOW, again_in=timedelta(seconds=10), window=timedelta(hours=8)
        )
        push = push.refused(full, now=NOW, again_in=timedelta(seconds=10), by=worker)
    return vm(
        observed=ObservedStatus.UNREPORTED,
        generation=len(worker_ids),
        user_generation=1,
        dispatch=push,
        worker=worker_ids[-1],
    )


def test_new_vm_would_go_where_placement_sends_it():
    found = dry_run(vm(observed=ObservedStatus.UNREPORTED, worker=None), candidates("w1"), NOW, SETTINGS)
    assert (found.kind, found.command, found.worker) == (DecisionKind.SEND, "start", "w1")
    assert full_text(found.message) == "start: w1 was chosen among 1 that fit"
    nowhere = dry_run(vm(observed=ObservedStatus.UNREPORTED, worker=None), [], NOW, SETTINGS)
    assert (nowhere.kind, nowhere.command, nowhere.worker) == (DecisionKind.WAIT, None, None)


def test_assigned_vm_gets_a_command_for_its_worker():
    found = dry_run(vm(observed=ObservedStatus.SUSPENDED), candidates("w1", "w2"), NOW, SETTINGS)
    assert (found.command, found.worker) == ("resume", "w1")
    assert dry_run(vm(), [], NOW, SETTINGS).message == NOTHING


def test_vm_refused_by_its_worker_moves_to_another():
    found = dry_run(refused_by("w1"), candidates("w1", "w2"), NOW, SETTINGS)
    assert (found.kind, found.command, found.worker) == (DecisionKind.SEND, "start", "w2")
    assert (
        full_text(found.message) == "w1 has no room for it; it goes to another worker: w2 was chosen among 1 that fit"
    )


def test_earlier_refusing_worker_is_not_chosen():
    found = dry_run(refused_by("w1", "w2"), candidates("w1", "w2", "w3"), NOW, SETTINGS)
    assert (found.command, found.worker) == ("start", "w3")
    nowhere = dry_run(refused_by("w1"), candidates("w1"), NOW, SETTINGS)
    assert (nowhere.kind, nowhere.command) == (DecisionKind.WAIT, None)
    assert "w1 has just refused it for lack of room" in nowhere.message


def test_differences_are_listed():
    before = vm()
    after = dataclasses.replace(before, desired=dataclasses.replace(before.desired, labels={"a": "b"}))
    assert changes(before, after) == [("labels", {}, {"a": "b"})]
    assert ("name", None, "web01") in changes(None, after)
