"""The displayed status of a VM: a table over every pair of desired and last reported status, reasons, problems."""

import dataclasses

import pytest

from master_service.core.errors import BadRequest
from master_service.planning.observed import HELD, ObservedStatus
from master_service.planning.status import STATUSES, MasterStatus, display_status, sought_status
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from tests.unit.master.builders import EARLIER, NOW, SETTINGS, status, vm
from worker_service.contract import Code

SHOWABLE = set(ObservedStatus) - {ObservedStatus.ABSENT, ObservedStatus.UNREACHABLE, *HELD}


def shown(subject):
    return display_status(subject, NOW, SETTINGS)


def test_every_desired_and_reported_pair_has_a_status():
    """Absence and silence are no statuses: the last report stays."""
    assert set(STATUSES) == {(desired, observed) for desired in DesiredStatus for observed in SHOWABLE}


SENT = DispatchState(user_generation=1, generation=1, verb="start", sent_at=EARLIER, attempts=1, next_at=EARLIER)

# DESIGN's table: status, assumed, real
TABLE = [
    ("running", ObservedStatus.UNREPORTED, DispatchState(), "pending", "starting", None),
    ("running", ObservedStatus.UNREPORTED, SENT, "pending", "preparing", None),
    ("running", ObservedStatus.STARTING, SENT, "preparing", "preparing", "starting"),
    ("running", ObservedStatus.INSTALLING, SENT, "installing", "installing", "installing"),
    ("running", ObservedStatus.RUNNING, SENT, "running", "running", "running"),
    ("running", ObservedStatus.SUSPENDED, SENT, "paused", "running", "suspended"),
    ("running", ObservedStatus.SAVING, SENT, "saving", "running", "saving"),
    ("running", ObservedStatus.HALTED, SENT, "halted", "preparing", "halted"),
    ("running", ObservedStatus.CRASHED, SENT, "failed", "preparing", "halted"),
    ("running", ObservedStatus.FAILED_TO_START, SENT, "failed", "preparing", "failed to start"),
    ("running", ObservedStatus.FAILED_TO_SAVE, SENT, "failed", "running", "failed to save"),
    ("running", ObservedStatus.GONE, SENT, "failed", "preparing", None),
    ("paused", ObservedStatus.UNREPORTED, SENT, "pending", "paused", None),
    ("paused", ObservedStatus.STARTING, SENT, "preparing", "paused", "starting"),
    ("paused", ObservedStatus.INSTALLING, SENT, "installing", "paused", "installing"),
    ("paused", ObservedStatus.RUNNING, SENT, "running", "paused", "running"),
    ("paused", ObservedStatus.SUSPENDED, SENT, "paused", "paused", "suspended"),
    ("paused", ObservedStatus.SAVING, SENT, "saving", "paused", "saving"),
    ("paused", ObservedStatus.HALTED, SENT, "halted", "paused", "halted"),
    ("paused", ObservedStatus.CRASHED, SENT, "failed", "paused", "halted"),
    ("paused", ObservedStatus.FAILED_TO_START, SENT, "failed", "paused", "failed to start"),
    ("paused", ObservedStatus.FAILED_TO_SAVE, SENT, "failed", "paused", "failed to save"),
    ("paused", ObservedStatus.GONE, SENT, "failed", "paused", None),
    ("halted", ObservedStatus.UNREPORTED, DispatchState(), "halted", "halted", None),
    ("halted", ObservedStatus.STARTING, SENT, "preparing", "halted", "starting"),
    ("halted", ObservedStatus.INSTALLING, SENT, "installing", "halted", "installing"),
    ("halted", ObservedStatus.RUNNING, SENT, "running", "halted", "running"),
    ("halted", ObservedStatus.SUSPENDED, SENT, "paused", "halted", "suspended"),
    ("halted", ObservedStatus.SAVING, SENT, "saving", "halted", "saving"),
    ("halted", ObservedStatus.HALTED, SENT, "halted", "halted", "halted"),
    ("halted", ObservedStatus.CRASHED, SENT, "halted", "halted", "halted"),
    ("halted", ObservedStatus.FAILED_TO_START, SENT, "failed", "halted", "failed to start"),
    ("halted", ObservedStatus.FAILED_TO_SAVE, SENT, "failed", "halted", "failed to save"),
    ("halted", ObservedStatus.GONE, SENT, "failed", "halted", None),
    ("destroyed", ObservedStatus.UNREPORTED, SENT, "destroying", "destroying", None),
    ("destroyed", ObservedStatus.STARTING, SENT, "destroying", "destroying", "starting"),
    ("destroyed", ObservedStatus.INSTALLING, SENT, "destroying", "destroying", "installing"),
    ("destroyed", ObservedStatus.RUNNING, SENT, "destroying", "destroying", "running"),
    ("destroyed", ObservedStatus.SUSPENDED, SENT, "destroying", "destroying", "suspended"),
    ("destroyed", ObservedStatus.SAVING, SENT, "destroying", "destroying", "saving"),
    ("destroyed", ObservedStatus.HALTED, SENT, "destroying", "destroying", "halted"),
    ("destroyed", ObservedStatus.CRASHED, SENT, "destroying", "destroying", "halted"),
    ("destroyed", ObservedStatus.FAILED_TO_START, SENT, "destroying", "destroying", "failed to start"),
    ("destroyed", ObservedStatus.FAILED_TO_SAVE, SENT, "destroying", "destroying", "failed to save"),
    ("destroyed", ObservedStatus.GONE, SENT, "destroying", "destroying", None),
]


def test_table_shows_every_pair():
    assert {(DesiredStatus(desired), observed) for desired, observed, *_ in TABLE} == set(STATUSES)


@pytest.mark.parametrize(("desired", "observed", "push", "status", "assumed", "real"), TABLE)
def test_status_and_reason_fit_the_case(desired, observed, push, status, assumed, real):
    found = shown(vm(DesiredStatus(desired), observed, dispatch=push))
    assert (found.status, found.assumed, found.real) == (status, assumed, real)


@pytest.mark.parametrize(
    "observed", [ObservedStatus.HALTED, ObservedStatus.CRASHED, ObservedStatus.FAILED_TO_START, ObservedStatus.GONE]
)
def test_newly_requested_start_is_pending(observed):
    assert shown(vm(observed=observed, generation=2, taken=1)).status is MasterStatus.PENDING


def test_matching_vm_has_no_reason():
    assert shown(vm()).reason == ""
    assert shown(vm()).problems == ()


@pytest.mark.parametrize("observed", [ObservedStatus.RUNNING, ObservedStatus.HALTED, ObservedStatus.SAVING])
def test_silent_worker_keeps_last_status_with_its_age(observed):
    subject = vm(DesiredStatus.HALTED if observed is ObservedStatus.HALTED else DesiredStatus.RUNNING, observed)
    heard = shown(subject)
    silent = dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, unreachable_since=EARLIER))
    found = shown(silent)
    assert (found.status, found.real) == (heard.status, heard.real)
    assert "w1 is unreachable since 2026-11-23 11:00:00 UTC" in found.reason
    assert [problem.code for problem in found.problems] == ["unreachable"]


def test_pending_says_why_no_worker_fits():
    problem = VMProblem(code=Code.NO_ROOM, message="no worker fits: w1 has 10 of 100 MiB memory free, 512 are needed")
    push = DispatchState(user_generation=1, generation=1, verb="start", attempts=1, next_at=NOW, problem=problem)
    found = shown(vm(observed=ObservedStatus.UNREPORTED, worker=None, dispatch=push))
    assert (found.status, found.assumed) == (MasterStatus.PENDING, "starting")
    assert found.reason == problem.message


def test_start_that_was_refused_for_good_has_failed():
    push = dataclasses.replace(SENT, problem=VMProblem(code=Code.POLICY, message="not under /etc"))
    found = shown(vm(observed=ObservedStatus.UNREPORTED, dispatch=push))
    assert found.status is MasterStatus.FAILED
    assert found.problems == (push.problem,)


def test_refusal_from_before_the_last_change_is_hidden():
    push = dataclasses.replace(SENT, problem=VMProblem(code=Code.POLICY, message="no"))
    assert shown(vm(observed=ObservedStatus.UNREPORTED, generation=2, dispatch=push)).problems == ()


def test_failure_carries_the_workers_message_and_the_next_try():
    subject = vm(observed=ObservedStatus.CRASHED, dispatch=dataclasses.replace(SENT, restarts=(EARLIER,)))
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, since=NOW))
    found = shown(subject)
    assert found.status is MasterStatus.FAILED
    assert "crashed; starts again at" in found.reason
    assert "restart 2 of 5" in found.reason
    assert found.next_at > NOW


def test_stuck_step_is_a_problem_and_the_reason():
    subject = vm(observed=ObservedStatus.STARTING)
    subject = dataclasses.replace(subject, observed=dataclasses.replace(subject.observed, last_progress_at=EARLIER))
    found = shown(subject)
    assert (found.status, found.next_at) == (MasterStatus.PREPARING, None)
    (problem,) = found.problems
    assert problem.code == "stuck"
    assert "without progress since 2026-11-23 11:00:00 UTC" in problem.message
    assert found.reason in problem.message


def test_missing_vm_is_never_called_halted():
    for misses in (1, 2, 3):
        found = shown(vm(observed=ObservedStatus.ABSENT, missed_polls=misses))
        assert found.status is MasterStatus.RUNNING
        assert found.reason


@pytest.mark.parametrize("desired", [DesiredStatus.RUNNING, DesiredStatus.PAUSED, DesiredStatus.HALTED])
def test_vm_destroyed_on_its_worker_has_its_own_problem(desired):
    found = shown(vm(desired, ObservedStatus.GONE))
    assert [problem.code for problem in found.problems] == ["gone"]
    assert found.problems[0].message.startswith("It was destroyed on w1, but not through this master")
    again = shown(vm(DesiredStatus.RUNNING, ObservedStatus.GONE, generation=2, taken=1))
    assert (again.status, again.problems) == (MasterStatus.PENDING, ())


def test_destroyed_vm_says_so_and_nothing_else():
    found = shown(vm(DesiredStatus.DESTROYED, ObservedStatus.GONE, destroyed_at=EARLIER))
    assert (found.status, found.reason) == (MasterStatus.DESTROYED, "")


def test_problem_of_a_worker_is_shown():
    subject = vm()
    ill = dataclasses.replace(subject.observed, status=status(problem="The disk is full."))
    problems = shown(dataclasses.replace(subject, observed=ill)).problems
    assert [(problem.code, problem.message) for problem in problems] == [("worker", "The disk is full.")]


@pytest.mark.parametrize(
    ("changes", "desired", "code", "words"),
    [
        ({"draining": True}, DesiredStatus.RUNNING, "drained", "w1 is drained: it gets no new VMs"),
        ({"draining": True}, DesiredStatus.HALTED, "drained", "starts there again"),
        (
            {"fenced_at": EARLIER},
            DesiredStatus.RUNNING,
            "fenced",
            "w1 is fenced since 2026-11-23 11:00:00 UTC",
        ),
        ({"fenced_at": EARLIER, "draining": True}, DesiredStatus.RUNNING, "fenced", "w1 is fenced"),
        ({"draining": True}, DesiredStatus.DESTROYED, "", ""),
    ],
)
def test_vm_on_a_worker_without_new_vms_says_so(changes, desired, code, words):
    observed = ObservedStatus.HALTED if desired is DesiredStatus.HALTED else ObservedStatus.RUNNING
    subject = vm(desired, observed)
    found = shown(dataclasses.replace(subject, worker=dataclasses.replace(subject.worker, **changes)))
    assert [problem.code for problem in found.problems] == [code] * bool(code)
    assert all(words in problem.message for problem in found.problems)
    assert found.status is shown(subject).status


def test_command_without_effect_is_a_problem():
    push = dataclasses.replace(SENT, verb="shutdown", accepted=1, corrected_generation=1)
    found = shown(vm(DesiredStatus.HALTED, ObservedStatus.RUNNING, dispatch=push))
    assert [problem.code for problem in found.problems] == ["no_effect"]
    assert found.problems[0].message.startswith("A command had no effect: w1 accepted shutdown twice")


@pytest.mark.parametrize(
    ("word", "observed", "fits"),
    [
        ("running", ObservedStatus.RUNNING, True),
        ("running", ObservedStatus.SUSPENDED, False),
        ("paused", ObservedStatus.SUSPENDED, True),
        ("suspended", ObservedStatus.SUSPENDED, True),
        ("suspended", ObservedStatus.RUNNING, False),
        ("Starting", ObservedStatus.STARTING, True),
        ("preparing", ObservedStatus.STARTING, True),
        ("failed", ObservedStatus.FAILED_TO_SAVE, True),
        ("failed_to_save", ObservedStatus.FAILED_TO_SAVE, True),
        ("failed-to-save", ObservedStatus.FAILED_TO_START, False),
        ("failed to start", ObservedStatus.FAILED_TO_START, True),
        ("failed to start", ObservedStatus.FAILED_TO_SAVE, False),
    ],
)
def test_status_is_sought_in_both_vocabularies(word, observed, fits):
    assert sought_status(word).fits(vm(observed=observed, dispatch=SENT)) is fits


def test_start_refused_for_good_has_failed_to_start():
    refused = dataclasses.replace(SENT, problem=VMProblem(code=Code.POLICY, message="no"))
    subject = vm(observed=ObservedStatus.UNREPORTED, dispatch=refused)
    assert sought_status("failed to start").fits(subject)
    assert not sought_status("failed to save").fits(subject)


def test_unknown_status_is_refused_with_both_vocabularies():
    with pytest.raises(BadRequest, match=r"'on' is no status.*running.*destroyed; the workers' words are starting, "):
        sought_status("on")
