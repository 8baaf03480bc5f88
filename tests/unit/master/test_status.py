import dataclasses

import pytest

from master_service.planning.observed import Seen
from master_service.planning.status import STATUSES, MasterStatus, status_of
from master_service.planning.vm import Problem, Push, Wanted
from tests.unit.master.builders import EARLIER, NOW, SETTINGS, vm
from worker_service.contract import Code

SHOWABLE = set(Seen) - {Seen.ABSENT, Seen.UNREACHABLE}


def shown(subject):
    return status_of(subject, NOW, SETTINGS)


def test_every_pair_of_wanted_and_last_seen_has_a_status():
    """Absence and silence are no statuses: what was seen before stays."""
    assert set(STATUSES) == {(wanted, seen) for wanted in Wanted for seen in SHOWABLE}


SENT = Push(asked=1, generation=1, verb="start", sent_at=EARLIER, attempts=1, next_at=EARLIER)

# DESIGN's table: status, assumed, real
TABLE = [
    ("running", Seen.UNREPORTED, Push(), "pending", "starting", None),
    ("running", Seen.UNREPORTED, SENT, "pending", "preparing", None),
    ("running", Seen.STARTING, SENT, "preparing", "preparing", "starting"),
    ("running", Seen.INSTALLING, SENT, "installing", "installing", "installing"),
    ("running", Seen.RUNNING, SENT, "running", "running", "running"),
    ("running", Seen.SUSPENDED, SENT, "paused", "running", "suspended"),
    ("running", Seen.SAVING, SENT, "saving", "running", "saving"),
    ("running", Seen.HALTED, SENT, "halted", "preparing", "halted"),
    ("running", Seen.CRASHED, SENT, "failed", "preparing", "halted"),
    ("running", Seen.FAILED_TO_START, SENT, "failed", "preparing", "failed to start"),
    ("running", Seen.FAILED_TO_SAVE, SENT, "failed", "running", "failed to save"),
    ("running", Seen.GONE, SENT, "failed", "preparing", None),
    ("paused", Seen.UNREPORTED, SENT, "pending", "paused", None),
    ("paused", Seen.STARTING, SENT, "preparing", "paused", "starting"),
    ("paused", Seen.INSTALLING, SENT, "installing", "paused", "installing"),
    ("paused", Seen.RUNNING, SENT, "running", "paused", "running"),
    ("paused", Seen.SUSPENDED, SENT, "paused", "paused", "suspended"),
    ("paused", Seen.SAVING, SENT, "saving", "paused", "saving"),
    ("paused", Seen.HALTED, SENT, "halted", "paused", "halted"),
    ("paused", Seen.CRASHED, SENT, "failed", "paused", "halted"),
    ("paused", Seen.FAILED_TO_START, SENT, "failed", "paused", "failed to start"),
    ("paused", Seen.FAILED_TO_SAVE, SENT, "failed", "paused", "failed to save"),
    ("paused", Seen.GONE, SENT, "failed", "paused", None),
    ("halted", Seen.UNREPORTED, Push(), "halted", "halted", None),
    ("halted", Seen.STARTING, SENT, "preparing", "halted", "starting"),
    ("halted", Seen.INSTALLING, SENT, "installing", "halted", "installing"),
    ("halted", Seen.RUNNING, SENT, "running", "halted", "running"),
    ("halted", Seen.SUSPENDED, SENT, "paused", "halted", "suspended"),
    ("halted", Seen.SAVING, SENT, "saving", "halted", "saving"),
    ("halted", Seen.HALTED, SENT, "halted", "halted", "halted"),
    ("halted", Seen.CRASHED, SENT, "halted", "halted", "halted"),
    ("halted", Seen.FAILED_TO_START, SENT, "failed", "halted", "failed to start"),
    ("halted", Seen.FAILED_TO_SAVE, SENT, "failed", "halted", "failed to save"),
    ("halted", Seen.GONE, SENT, "failed", "halted", None),
    ("destroyed", Seen.UNREPORTED, SENT, "destroying", "destroying", None),
    ("destroyed", Seen.STARTING, SENT, "destroying", "destroying", "starting"),
    ("destroyed", Seen.INSTALLING, SENT, "destroying", "destroying", "installing"),
    ("destroyed", Seen.RUNNING, SENT, "destroying", "destroying", "running"),
    ("destroyed", Seen.SUSPENDED, SENT, "destroying", "destroying", "suspended"),
    ("destroyed", Seen.SAVING, SENT, "destroying", "destroying", "saving"),
    ("destroyed", Seen.HALTED, SENT, "destroying", "destroying", "halted"),
    ("destroyed", Seen.CRASHED, SENT, "destroying", "destroying", "halted"),
    ("destroyed", Seen.FAILED_TO_START, SENT, "destroying", "destroying", "failed to start"),
    ("destroyed", Seen.FAILED_TO_SAVE, SENT, "destroying", "destroying", "failed to save"),
    ("destroyed", Seen.GONE, SENT, "destroying", "destroying", None),
]


def test_the_table_shows_every_pair():
    assert {(Wanted(wanted), seen) for wanted, seen, *_ in TABLE} == set(STATUSES)


@pytest.mark.parametrize(("wanted", "seen", "push", "status", "assumed", "real"), TABLE)
def test_status(wanted, seen, push, status, assumed, real):
    found = shown(vm(Wanted(wanted), seen, push=push))
    assert (found.status, found.assumed, found.real) == (status, assumed, real)


@pytest.mark.parametrize("seen", [Seen.HALTED, Seen.CRASHED, Seen.FAILED_TO_START, Seen.GONE])
def test_a_start_that_was_asked_for_anew_is_pending(seen):
    assert shown(vm(seen=seen, generation=2, taken=1)).status is MasterStatus.PENDING


def test_as_wanted_there_is_no_reason():
    assert shown(vm()).reason == ""
    assert shown(vm()).problems == ()


@pytest.mark.parametrize("seen", [Seen.RUNNING, Seen.HALTED, Seen.SAVING])
def test_a_silent_worker_leaves_the_last_status_and_says_since_when(seen):
    subject = vm(Wanted.HALTED if seen is Seen.HALTED else Wanted.RUNNING, seen)
    heard = shown(subject)
    silent = dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, unreachable_since=EARLIER))
    found = shown(silent)
    assert (found.status, found.real) == (heard.status, heard.real)
    assert "w1 is unreachable since 2026-11-23 11:00:00 UTC" in found.reason
    assert [problem.code for problem in found.problems] == ["unreachable"]


def test_pending_says_why_no_worker_fits():
    problem = Problem(code=Code.NO_ROOM, message="no worker fits: w1: 10 of 100 MiB memory are free, 512 are needed")
    push = Push(asked=1, generation=1, verb="start", attempts=1, next_at=NOW, problem=problem)
    found = shown(vm(seen=Seen.UNREPORTED, worker=None, push=push))
    assert (found.status, found.assumed) == (MasterStatus.PENDING, "starting")
    assert found.reason == problem.message


def test_a_start_that_was_refused_for_good_has_failed():
    push = dataclasses.replace(SENT, problem=Problem(code=Code.POLICY, message="not under /etc"))
    found = shown(vm(seen=Seen.UNREPORTED, push=push))
    assert found.status is MasterStatus.FAILED
    assert found.problems == (push.problem,)


def test_a_refusal_from_before_the_users_last_change_is_not_shown():
    push = dataclasses.replace(SENT, problem=Problem(code=Code.POLICY, message="no"))
    assert shown(vm(seen=Seen.UNREPORTED, generation=2, push=push)).problems == ()


def test_a_failure_carries_the_workers_message_and_the_next_try():
    subject = vm(seen=Seen.CRASHED, push=dataclasses.replace(SENT, redone=(EARLIER,)))
    subject = dataclasses.replace(subject, real=dataclasses.replace(subject.real, since=NOW))
    found = shown(subject)
    assert found.status is MasterStatus.FAILED
    assert "crashed; starts again at" in found.reason
    assert "restart 2 of 5" in found.reason
    assert found.next_at > NOW


def test_a_stuck_step_is_a_problem_and_the_reason():
    subject = vm(seen=Seen.STARTING)
    subject = dataclasses.replace(subject, real=dataclasses.replace(subject.real, moved_at=EARLIER))
    found = shown(subject)
    assert (found.status, found.next_at) == (MasterStatus.PREPARING, None)
    (problem,) = found.problems
    assert problem.code == "stuck"
    assert "nothing about it has changed since 2026-11-23 11:00:00 UTC" in problem.message
    assert found.reason in problem.message


def test_a_missing_vm_is_never_called_halted():
    for misses in (1, 2, 3):
        found = shown(vm(seen=Seen.ABSENT, misses=misses))
        assert found.status is MasterStatus.RUNNING
        assert found.reason


def test_a_destroyed_vm_says_so_and_nothing_else():
    found = shown(vm(Wanted.DESTROYED, Seen.GONE, destroyed_at=EARLIER))
    assert (found.status, found.reason) == (MasterStatus.DESTROYED, "")
