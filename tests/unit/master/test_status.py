import dataclasses

import pytest

from master_service.facts import Problem, Push, Wanted
from master_service.seen import Seen
from master_service.status import STATUSES, MasterStatus, status_of
from tests.unit.master.builders import EARLIER, NOW, REPORTS, SETTINGS, vm
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
    ("paused", Seen.SUSPENDED, SENT, "paused", "paused", "suspended"),
    ("destroyed", Seen.RUNNING, SENT, "destroying", "destroying", "running"),
    ("destroyed", Seen.HALTED, SENT, "destroying", "destroying", "halted"),
    ("running", Seen.SAVING, SENT, "saving", "running", "saving"),
    ("halted", Seen.SAVING, SENT, "saving", "halted", "saving"),
    ("halted", Seen.HALTED, SENT, "halted", "halted", "halted"),
    ("halted", Seen.CRASHED, SENT, "halted", "halted", "halted"),
    ("running", Seen.CRASHED, SENT, "failed", "preparing", "halted"),
    ("running", Seen.FAILED_TO_START, SENT, "failed", "preparing", "failed to start"),
    ("halted", Seen.FAILED_TO_SAVE, SENT, "failed", "halted", "failed to save"),
    ("halted", Seen.UNREPORTED, Push(), "halted", "halted", None),
]


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


def test_a_missing_vm_is_never_called_halted():
    for misses in (1, 2, 3):
        found = shown(vm(seen=Seen.ABSENT, misses=misses))
        assert found.status is MasterStatus.RUNNING
        assert found.reason


def test_a_destroyed_vm_says_so_and_nothing_else():
    found = shown(vm(Wanted.DESTROYED, Seen.GONE, destroyed_at=EARLIER))
    assert (found.status, found.reason) == (MasterStatus.DESTROYED, "")


def test_no_report_is_left_out_of_these_tests():
    assert {seen for _, seen, *_ in TABLE} >= set(REPORTS)
