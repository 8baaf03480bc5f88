"""Table tests of the effects of polls and events."""

from dataclasses import replace
from datetime import timedelta

import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import Worker
from master_service.policy.incidents import Kind
from master_service.policy.poll_digest import Poll, digest_event, digest_poll
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, SETTINGS, UUID, status, vm
from worker_service.contract import Foreign, ListReply

OTHER = "22222222-2222-4333-8444-555555555555"
W1, W2 = (Worker(id=name, key="k", capacity=CAPACITY, seen_at=EARLIER) for name in ("w1", "w2"))
BOTH = {"w1": W1, "w2": W2}


def reply(*reports, tombstones=None, foreign=()):
    return ListReply(
        vmachines=reports, foreign=tuple(foreign), tombstones=tombstones or {}, capacity=CAPACITY, version="2"
    )


def poll(replies, **more):
    return Poll(requested_at=NOW, replies=replies, **more)


def digest(subject, replies, workers=BOTH, **more):
    return digest_poll([subject] if subject else [], workers, poll(replies, **more), SETTINGS)


@pytest.mark.parametrize(
    ("subject", "given", "expected"),
    [
        pytest.param(vm(observed=ObservedStatus.STARTING), reply(status()), {"real_at": NOW, "since": NOW}, id="news"),
        pytest.param(vm(), reply(status()), {"real_at": NOW, "since": EARLIER}, id="same again"),
        pytest.param(vm(), reply(), {"missed_polls": 1, "real_at": EARLIER}, id="missing"),
        pytest.param(vm(), reply(tombstones={UUID: 3}), {"tombstone": 3, "real_at": NOW}, id="destroyed there"),
    ],
)
def test_reply_changes_the_observed_state(subject, given, expected):
    effects = digest(subject, {"w1": given}, complete=False)
    (observation,) = effects.observations
    assert {name: getattr(observation.after, name) for name in expected} == expected
    assert observation.updated.observed == observation.after == effects.vms[0].observed
    assert observation.vm == subject


@pytest.mark.parametrize(
    ("subject", "replies", "workers"),
    [
        pytest.param(vm(), {"w2": reply()}, BOTH, id="its worker is silent"),
        pytest.param(vm(worker=None), {"w1": reply(status())}, BOTH, id="not its worker"),
        pytest.param(vm(), {"w1": reply()}, {"w1": replace(W1, seen_at=NOW)}, id="counted already"),
    ],
)
def test_replies_of_others_change_nothing(subject, replies, workers):
    effects = digest(subject, replies, workers)
    assert effects.observations == []
    assert effects.vms[0].observed == subject.observed


def test_state_newer_than_the_poll_stays():
    subject = vm()
    subject = replace(subject, observed=replace(subject.observed, real_at=NOW + timedelta(seconds=1)))
    assert digest(subject, {"w1": reply()}).observations == []


def test_answering_worker_is_updated():
    silent = replace(W1, unreachable_since=EARLIER, problem="answers: nothing", draining=True)
    other = Foreign(uuid=OTHER, name="theirs", state="running")
    given = reply(status(), status(uuid=OTHER, name="stray"), foreign=[other])
    effects = digest(vm(), {"w1": given}, {"w1": silent})
    (worker,) = effects.workers
    assert worker == Worker(
        id="w1",
        key="k",
        capacity=CAPACITY,
        version="2",
        seen_at=NOW,
        draining=True,
        foreign=(other,),
        unassigned_vms=(status(uuid=OTHER, name="stray"),),
    )
    assert effects.vms[0].worker == worker


@pytest.mark.parametrize("state", ["running", "paused", "in a state of a newer worker"])
@pytest.mark.parametrize("complete", [True, False])
def test_domain_on_another_worker_is_noted(state, complete):
    there = reply(foreign=[Foreign(uuid=UUID, name="web01", state=state)])
    for subject in (vm(), vm(worker=None), vm(worker="w9")):
        effects = digest(subject, {"w1": reply(status()), "w2": there}, complete=complete)
        assert effects.vms[0].observed.elsewhere == "w2"
        assert effects.observations[0].after.elsewhere == "w2"


@pytest.mark.parametrize(
    ("domain", "workers"),
    [
        pytest.param(Foreign(uuid=UUID, name="web01", state="off"), BOTH, id="it is off"),
        pytest.param(Foreign(uuid=OTHER, name="web01", state="running"), BOTH, id="another VM of its name"),
        pytest.param(
            Foreign(uuid=UUID, name="web01", state="running"), {"w1": W1, "w2": replace(W2, fenced_at=EARLIER)},
            id="that worker is off",
        ),
        pytest.param(Foreign(uuid=UUID, name="web01", state="running"), {"w1": W1}, id="not enrolled"),
    ],
)  # fmt: skip
def test_domain_that_is_not_the_vm_holds_nothing(domain, workers):
    subject = vm()
    subject = replace(subject, observed=replace(subject.observed, elsewhere="w2"))
    effects = digest(subject, {"w1": reply(status()), "w2": reply(foreign=[domain])}, workers)
    assert effects.vms[0].observed.elsewhere == ""


def test_silent_worker_counts_by_its_last_answer():
    domain = Foreign(uuid=UUID, name="web01", state="running")
    silent = replace(W2, foreign=(domain,), unreachable_since=EARLIER)
    effects = digest(vm(), {"w1": reply(status())}, {"w1": W1, "w2": silent})
    assert effects.vms[0].observed.elsewhere == "w2"


def test_reply_of_a_worker_that_is_not_enrolled_is_left_out():
    assert digest(None, {"w9": reply()}, {}).workers == []


def test_fenced_worker_that_answers_has_a_problem():
    (worker,) = digest(None, {"w1": reply()}, {"w1": replace(W1, fenced_at=EARLIER)}).workers
    assert "fenced" in worker.problem
    assert worker.fenced_at == EARLIER


@pytest.mark.parametrize(
    ("before", "since"), [(None, NOW), (EARLIER, EARLIER)], ids=["silent since now", "silent since before"]
)
def test_silent_worker_is_unreachable_since_its_missed_poll(before, since):
    effects = digest(vm(), {}, {"w1": replace(W1, unreachable_since=before)}, refused={"w1": "answers: no"})
    (worker,) = effects.workers
    assert (worker.unreachable_since, worker.problem, worker.seen_at) == (since, "answers: no", EARLIER)
    assert [(each.kind, each.owner) for each in effects.incidents] == [
        (Kind.UNREACHABLE, ""),
        (Kind.UNREACHABLE, "admin"),
    ]
    assert effects.vms[0].worker == worker


def test_incomplete_poll_changes_no_other_worker():
    effects = digest(vm(), {"w2": reply()}, complete=False)
    assert [worker.id for worker in effects.workers] == ["w2"]
    assert effects.incidents == []
    assert effects.vms[0].worker == W1


def test_failed_start_is_an_incident_of_poll_and_event():
    subject, failed = vm(observed=ObservedStatus.STARTING), status(ObservedStatus.FAILED_TO_START)
    effects = digest(subject, {"w1": reply(failed)}, complete=False)
    observation, incidents = digest_event(subject, "w1", failed, NOW, SETTINGS)
    assert [each.kind for each in effects.incidents] == [Kind.FAILED_TO_START]
    assert incidents == effects.incidents
    assert observation == effects.observations[0]


def test_event_with_news_is_no_incident():
    observation, incidents = digest_event(vm(observed=ObservedStatus.STARTING), "w1", status(), NOW, SETTINGS)
    assert observation.after.status == status()
    assert incidents == []


@pytest.mark.parametrize(
    ("subject", "minion", "reported"),
    [
        pytest.param(vm(), "w2", status(), id="another worker"),
        pytest.param(vm(generation=2, taken=2), "w1", status(generation=1), id="older"),
        pytest.param(vm(observed=ObservedStatus.GONE), "w1", status(generation=1), id="destroyed since"),
    ],
)
def test_event_without_news_has_no_effects(subject, minion, reported):
    assert digest_event(subject, minion, reported, NOW, SETTINGS) is None
