"""Dry run: the planner's decision, reported instead of carried out."""

import dataclasses
from datetime import timedelta

import msgspec
import pytest

from master_service.core.audience import full_text, public_text
from master_service.planning.decision import DecisionKind
from master_service.planning.dry_run import (
    NOTHING,
    changes,
    dry_run,
    plan_request,
    question_about_changes,
    read_plan,
    reason_not_to_send,
)
from master_service.planning.observed import ObservedStatus
from master_service.planning.placement import Candidate
from master_service.planning.vm import Command, DispatchState, VMProblem, Worker
from tests.unit.master.builders import CAPACITY, NOW, SETTINGS, vm
from worker_service.contract import PLAN_FEATURE, Code, Spec


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


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({}, ""),
        ({"unreachable_since": NOW}, f"is unreachable since {NOW:%Y-%m-%d %H:%M:%S} UTC"),
        ({"capacity": None, "version": "0.1"}, "has an older version of Saltern (0.1), which cannot be asked"),
        ({"capacity": None}, "has an older version of Saltern (unknown), which cannot be asked"),
    ],
)
def test_plan_is_requested_of_a_worker_that_can_answer(changed, why):
    able = msgspec.structs.replace(CAPACITY, features=(PLAN_FEATURE,))
    worker = dataclasses.replace(Worker(id="w1", key="k", capacity=able, seen_at=NOW), **changed)
    assert reason_not_to_send(worker) == why


def test_request_for_a_plan_has_the_spec_and_the_owner():
    found = plan_request(vm())
    assert (found.uuid, found.owner, found.name) == (vm().uuid, vm().desired.owner, "web01")
    assert {name: getattr(found, name) for name in Spec.__struct_fields__} == msgspec.structs.asdict(vm().desired.spec)


@pytest.mark.parametrize(
    ("answer", "fits", "code", "words"),
    [
        ({"success": True, "fits": True, "message": "Fits."}, True, "", "w1: Fits"),
        ({"success": True, "fits": False, "message": "Full."}, False, "no_room", "w1: Full"),
        ({"success": True, "fits": False, "code": "policy", "message": "No."}, False, "policy", "w1: No"),
        ({"success": False, "code": "policy", "message": "No."}, False, "policy", "w1 refuses it: No"),
        ({"success": False, "code": "internal", "message": "Oops."}, None, "", "w1 was not understood: Oops"),
        ({"success": False, "message": "Oops."}, None, "", "what it would do is not known"),
        ({"success": False, "code": "no_such_code", "message": "Hm."}, None, "", "w1 was not understood: Hm"),
        ({"success": "perhaps"}, None, "", "w1 answers in an unknown shape"),
        ("a traceback", None, "", "w1 answers in an unknown shape"),
    ],
)
def test_answer_to_a_plan_is_read_whatever_it_is(answer, fits, code, words):
    found = read_plan("w1", answer)
    assert (found.worker, found.fits, found.code) == ("w1", fits, code)
    assert words in full_text(found.message)
    assert found.refuses is (code == "policy")


def test_numbers_of_a_plan_are_not_for_all():
    full = "'web01' needs 64 MiB of memory; 4321 of 8765 MiB are free here. Use less, or another worker."
    found = read_plan("w1", {"success": False, "code": "no_room", "message": full})
    assert "4321" in full_text(found.message)
    assert "4321" not in public_text(found.message)


def test_answer_to_a_plan_is_bounded():
    image = {"disk": "hda", "uri": "file:/a", "cached": True}
    answer = {"success": True, "fits": True, "bytes_to_fetch": 7, "images": [image] * 1000}
    found = read_plan("w1", answer)
    assert found.bytes_to_fetch == 7
    assert len(found.images) == 8  # far more than a VM has


@pytest.mark.parametrize(
    ("settings", "placed", "expected"),
    [
        ({}, True, None),
        ({"hda_save_to": ""}, True, None),
        ({"hda_save_to": None}, True, None),
        ({"cd_image": "file:/cd.iso"}, False, None),
        ({"cd_image": "file:/cd.iso"}, True, {"cd_image": "file:/cd.iso"}),
        ({"hda_save_to": "file:/a"}, True, {"hda_save_to": "file:/a"}),
        ({"hdb_save_to": "file:/b"}, True, {"hdb_save_to": "file:/b", "hdb_image": "blank:1M"}),
    ],
)
def test_changes_are_a_question_without_images(settings, placed, expected):
    before = vm() if placed else vm(worker=None)
    spec = msgspec.structs.replace(before.desired.spec, **settings)
    found = question_about_changes(
        before, dataclasses.replace(before, desired=dataclasses.replace(before.desired, spec=spec))
    )
    if expected is None:
        assert found is None
    else:
        least = {"hda_image": "blank:1M", "mem_size": 16, "network": "none"}
        assert found.desired.spec == Spec(name="web01", **least, **expected)
        assert found.uuid == before.uuid
