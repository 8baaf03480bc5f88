"""The planner of the state module: every goal and every status, and the dry run."""

import itertools

import msgspec
import pytest

from worker_service.contract import HaltCause, Status, VMStatus
from worker_service.contract.words import HOW
from worker_service.operations.desired_state import (
    GoalError,
    GoalStep,
    decide,
    dry_run,
    flag,
    name_of,
    parse_parameters,
    parse_status,
    plannable,
    seconds,
    timeout_message,
)
from worker_service.operations.state_report import (
    changes_between,
    comment,
    is_kept,
    start_note,
    start_obstacle,
    to_fetch,
)

IMAGE, PLACE, OTHER = "file:///images/a.raw", "file:///saved/a.qcow2", "file:///saved/b.qcow2"
GIVEN = {"hda_image": IMAGE, "hda_save_to": PLACE}
GOALS = ("running", "paused", "halted", "absent")


def vm(status, disks=None, message="Why.", **spec):
    spec = {"name": "a", "hda_image": IMAGE, "hda_save_to": PLACE, **spec}
    known = {"uuid": "u", "name": "a", "generation": 1, "since": ""}
    return msgspec.convert(
        {**known, "status": status, "message": message, "spec": spec, "disks": disks or {}}, VMStatus
    )


def kept(saved_to=None, **spec):
    place = {"save_to": spec.get("hda_save_to", PLACE), "saved_to": saved_to}
    known = vm("halted", {"hda": {**place, "kept": "/vms/hda.qcow2"}}, **spec)
    return msgspec.structs.replace(known, halt_cause=HaltCause.CRASHED)


SAVED = {"hda": {"save_to": PLACE, "saved_to": PLACE, "sha256": "0a", "size": 7}}


FIRST = {  # the first step, for a VM that has what is asked for
    ("running", None): "start",
    ("running", "starting"): "wait",
    ("running", "failed to start"): "start",
    ("running", "installing"): "wait",
    ("running", "running"): "done",
    ("running", "suspended"): "resume",
    ("running", "saving"): "wait",
    ("running", "failed to save"): "fail",
    ("running", "halted"): "start",
    ("paused", None): "start",
    ("paused", "starting"): "wait",
    ("paused", "failed to start"): "start",
    ("paused", "installing"): "wait",
    ("paused", "running"): "suspend",
    ("paused", "suspended"): "done",
    ("paused", "saving"): "wait",
    ("paused", "failed to save"): "fail",
    ("paused", "halted"): "start",
    ("halted", None): "done",
    ("halted", "starting"): "shutdown",
    ("halted", "failed to start"): "done",
    ("halted", "installing"): "shutdown",
    ("halted", "running"): "shutdown",
    ("halted", "suspended"): "resume",  # paused, it would not hear its power button
    ("halted", "saving"): "wait",
    ("halted", "failed to save"): "save_retry",
    ("halted", "halted"): "done",
    ("absent", None): "done",
    **{("absent", str(status)): "destroy" for status in Status},
}


def test_every_pair_is_in_the_table():
    assert set(FIRST) == set(itertools.product(GOALS, (None, *map(str, Status))))


@pytest.mark.parametrize(("goal", "status"), FIRST)
def test_first_step_follows_from_desired_and_status(goal, status):
    given = GIVEN if goal in ("running", "paused") else {}
    assert decide(goal, given, status and vm(status)).do == FIRST[goal, status]


@pytest.mark.parametrize(("goal", "status"), FIRST)
def test_dry_run_leads_to_the_desired_state(goal, status):
    given = GIVEN if goal in ("running", "paused") else {}
    observed = status and vm(status)
    after, steps = dry_run(goal, given, observed)
    assert steps[0].do == FIRST[goal, status]
    if FIRST[goal, status] == "fail":
        assert steps[-1].reason
        assert after == observed
    else:
        assert decide(goal, given, after).do == "done"
        assert (FIRST[goal, status] == "done") == (changes_between(observed, after) == {})


@pytest.mark.parametrize(
    ("goal", "given", "observed", "message", "step"),
    [
        # Verbs are not repeated within one apply.
        ("running", GIVEN, vm("failed to start"), {"start"}, GoalStep("fail", "Why.")),
        ("running", GIVEN, vm("halted"), {"start"}, GoalStep("fail", "It was started and is halted again. Why.")),
        ("running", GIVEN, vm("saving"), {"start"}, GoalStep("fail", "It was started and is saving again. Why.")),
        ("running", GIVEN, None, {"start"}, GoalStep("fail", "It was started, and then destroyed by another command.")),
        ("running", GIVEN, vm("suspended"), {"resume"}, GoalStep("wait")),
        ("paused", GIVEN, vm("running"), {"suspend"}, GoalStep("wait")),
        ("halted", {}, vm("suspended"), {"resume"}, GoalStep("shutdown")),
        ("halted", {}, vm("failed to save"), {"save_retry"}, GoalStep("fail", "Why.")),
        ("absent", {}, vm("running"), {"destroy"}, GoalStep("wait")),
        # Given parameters that differ.
        (
            "running",
            {**GIVEN, "hda_save_to": OTHER},
            vm("running"),
            (),
            GoalStep("modify", parameters={"hda_save_to": OTHER}),
        ),
        ("running", {"hda_save_to": ""}, vm("starting"), (), GoalStep("modify", parameters={"hda_save_to": ""})),
        ("running", {"cd_image": IMAGE}, vm("running"), (), GoalStep("modify", parameters={"cd_image": IMAGE})),
        ("running", {"cd_image": IMAGE}, vm("starting"), (), GoalStep("wait", "It is being started.", more=True)),
        ("halted", {"hda_save_to": OTHER}, vm("running"), (), GoalStep("modify", parameters={"hda_save_to": OTHER})),
        ("halted", {"hda_save_to": OTHER}, kept(), (), GoalStep("modify", parameters={"hda_save_to": OTHER})),
        # Omitted, absent and default parameters.
        ("running", {}, vm("running", cpu_count=4), (), GoalStep("done")),
        ("running", {"cpu_count": 1, "mem_size": 512, "network": "user"}, vm("running"), (), GoalStep("done")),
        ("running", {"cd_image": ""}, vm("running"), (), GoalStep("done")),
        ("running", {"hda_save_to": ""}, vm("running", hda_save_to=""), (), GoalStep("done")),
        ("running", {"hda_save_to": "keep"}, vm("running", hda_save_to=None), (), GoalStep("done")),
        (
            "running",
            {"hda_save_to": ""},
            vm("running", hda_save_to=None),
            (),
            GoalStep("modify", parameters={"hda_save_to": ""}),
        ),
        ("running", {"hda_save_to": "keep"}, vm("running"), (), GoalStep("modify", parameters={"hda_save_to": "keep"})),
        ("running", {"soft_list": []}, vm("running"), (), GoalStep("done")),
        ("running", {"soft_list": ["git"]}, vm("running", soft_list=["git"]), (), GoalStep("done")),
        ("running", {"mem_size": 64}, vm("halted", cpu_count=2), (), None),
        # Disks of an unexpected halt.
        ("running", GIVEN, kept(), (), GoalStep("start", parameters=GIVEN)),
        ("halted", {}, kept(), (), GoalStep("shutdown")),
        ("halted", {}, kept(hda_save_to=None), (), GoalStep("done")),
        ("halted", {}, kept(hda_save_to=""), (), GoalStep("done")),  # the state does not say that it may go
        ("halted", {"hda_save_to": ""}, kept(hda_save_to=""), (), GoalStep("shutdown")),
        ("halted", {"hda_save_to": ""}, kept(hda_save_to=None), (), GoalStep("modify", parameters={"hda_save_to": ""})),
        ("halted", {}, kept(saved_to=PLACE), (), GoalStep("done")),
    ],
)
def test_next_step_follows_from_the_reply(goal, given, observed, message, step):
    if step is None:
        step = GoalStep("start", parameters={"hda_image": IMAGE, "hda_save_to": PLACE, "cpu_count": 2, "mem_size": 64})
    assert decide(goal, given, observed, frozenset(message)) == step


@pytest.mark.parametrize(
    ("goal", "given", "observed", "words"),
    [
        ("running", {}, None, "hda_image"),
        ("running", {"cpu_count": 4}, vm("running"), "cpu_count 1 (asked for: 4). That cannot be changed while it is"),
        ("running", {"mem_size": 64}, vm("suspended", mem_size=32), "vmachines.halted"),
        ("running", {"hda_image": OTHER}, kept(), "hda_image cannot be changed"),
        (
            "running",
            {"hda_image": OTHER},
            vm("halted", SAVED),
            "It would start from its last save, so hda_image cannot",
        ),
        ("running", GIVEN, vm("failed to save"), "save_retry"),
        ("halted", {"hda_save_to": OTHER}, vm("halted"), "Saved disks are not moved."),
    ],
)
def test_errors_say_what_to_do(goal, given, observed, words):
    step = decide(goal, given, observed)
    assert step.do == "fail"
    assert words in step.reason


SAVE = f"{PLACE}#sha256=0a"
BOTH = {**SAVED, "hdb": {"save_to": OTHER, "saved_to": OTHER, "sha256": "0b"}}
FROM = {"hda": "file:///saved/earlier#sha256=0e"}
"""The save that a life started from."""


@pytest.mark.parametrize(
    ("observed", "origin"),
    [
        (vm("halted", SAVED), {"hda": SAVE}),
        (vm("halted", {**SAVED, "hdb": {"save_to": ""}}, hdb_image=IMAGE), {"hda": SAVE}),
        (vm("halted", BOTH, hdb_image=IMAGE, hdb_save_to=OTHER), {"hda": SAVE, "hdb": f"{OTHER}#sha256=0b"}),
        (vm("halted", {"hda": {"save_to": ""}}, hda_save_to=""), {}),
        (vm("failed to start"), {}),
        (msgspec.structs.replace(vm("failed to start"), origin=FROM), FROM),  # its store did not answer
        (msgspec.structs.replace(vm("halted", SAVED), origin=FROM), {"hda": SAVE}),
        (kept(), {}),
        (kept(saved_to=PLACE), {}),
        (None, {}),
    ],
)
@pytest.mark.parametrize("goal", ["running", "paused"])
def test_start_goes_on_from_the_last_save(goal, observed, origin):
    step = decide(goal, GIVEN, observed)
    assert (step.do, step.parameters.get("origin", {})) == ("start", origin)
    after, steps = dry_run(goal, GIVEN, observed)
    assert steps[0] == step
    assert decide(goal, GIVEN, after).do == "done"  # the parameters of the VM are as written
    if observed is None or not is_kept(observed):
        assert "origin" not in decide(goal, GIVEN, observed, from_image=True).parameters
    else:
        refused = decide(goal, GIVEN, observed, from_image=True)
        assert (refused.do, "a new life would discard them" in refused.reason) == ("fail", True)
    note = start_note(step.parameters, observed)
    assert note.startswith(
        "It starts from its last save: " if origin else "It starts from its kept" if kept_by(observed) else ""
    )
    assert all(save in note for save in origin.values())


def kept_by(observed):
    return observed is not None and is_kept(observed)


def test_new_life_may_have_another_image():
    step = decide("running", {"hda_image": OTHER}, vm("halted", SAVED), from_image=True)
    assert step.parameters["hda_image"] == OTHER


def test_dry_run_of_a_vm_that_is_being_saved_starts_from_that():
    _, steps = dry_run("running", GIVEN, vm("saving"))
    start = next(step for step in steps if step.do == "start")
    assert start.parameters["origin"] == {"hda": PLACE}  # its digest is not known yet
    assert plannable(start.parameters)["origin"] == {}
    assert plannable(GIVEN) == GIVEN
    assert start_note(start.parameters, vm("saving")) == f"It starts from its last save: {PLACE}."


@pytest.mark.parametrize(("value", "found"), [(True, True), ("false", False)])
def test_flag_of_an_sls_is_parsed(value, found):
    assert flag("from_image", value) is found
    with pytest.raises(GoalError, match="from_image: 'perhaps' is neither true nor false"):
        flag("from_image", "perhaps")


@pytest.mark.parametrize(
    ("cause", "policy", "step"),
    [
        ("crashed", "on_failure", "wait"),  # not in safety yet
        ("guest shut down", "always", "wait"),
        ("operator shutdown", "on_failure", "done"),  # it never booted: there was nothing to save
    ],
)
def test_halt_that_the_worker_has_not_noted_yet(cause, policy, step):
    for save_to in (PLACE, None):
        known = vm("halted", {"hda": {"save_to": save_to}}, run_policy=policy, hda_save_to=save_to)
        observed = msgspec.structs.replace(known, halt_cause=HaltCause(cause))
        assert decide("halted", {}, observed).do == step
        assert step == "done" or decide("running", {}, observed).do == step


def test_dry_run_of_a_halted_kept_start_saves_its_disks():
    assert dry_run("halted", {}, vm("starting"))[0].disks == {}
    again = msgspec.structs.replace(kept(), status=Status.STARTING)
    assert dry_run("halted", {}, again)[0].disks["hda"].saved_to == PLACE
    stays = dry_run("halted", {}, vm("running", hda_save_to=None))[0]
    assert comment("halted", "a", vm("running"), stays, dry_run=True) == (
        "a would be halted. hda is kept in its folder on this worker."
    )
    assert dry_run("halted", {"hda_save_to": "keep"}, vm("running"))[0] == stays


@pytest.mark.parametrize(
    ("before", "after", "changes"),
    [
        (None, None, {}),
        (vm("running"), vm("running"), {}),
        (vm("running"), None, {"status": {"old": "running", "new": "absent"}}),
        (
            None,
            vm("running", mem_size=64),
            {
                "status": {"old": "absent", "new": "running"},
                "hda_image": {"old": None, "new": IMAGE},
                "hda_save_to": {"old": None, "new": PLACE},
                "mem_size": {"old": None, "new": 64},
            },
        ),
        (vm("running"), vm("running", hda_save_to=""), {"hda_save_to": {"old": PLACE, "new": ""}}),
        (
            vm("running"),
            vm("halted", SAVED),
            {
                "status": {"old": "running", "new": "halted"},
                "hda": {"old": "on the worker", "new": {"saved_to": PLACE, "sha256": "0a", "size": 7}},
            },
        ),
        (vm("halted", SAVED), vm("halted", SAVED), {}),
        (
            vm("running", {"hda": {"save_to": ""}}, hda_save_to=""),
            vm("halted", {"hda": {"save_to": ""}}, hda_save_to=""),
            {
                "status": {"old": "running", "new": "halted"},
                "hda": {"old": "on the worker", "new": "discarded"},
            },
        ),
    ],
)
def test_changes_list_given_parameters_that_differ(before, after, changes):
    assert changes_between(before, after) == changes


def test_parameter_reset_to_its_default_is_a_change():
    before, after = vm("failed to start", cpu_count=4), vm("running")
    assert changes_between(before, after)["cpu_count"] == {"old": 4, "new": 1}


def test_secret_of_a_state_file_is_no_difference():
    """A state file of version 0.1 may have a presigned URL. Its VM is there and has lost the signature."""
    uri = "https://h/a.raw?X-Amz-Signature=c4nary"
    here = vm("running", hda_image=uri)
    assert decide("running", {"hda_image": uri}, here).do == "done"
    step = decide("running", {"hda_image": uri.replace("a.raw", "b.raw")}, here)
    assert (step.do, "c4nary" in step.reason, "b.raw?X-Amz-Signature=***" in step.reason) == ("fail", False, True)
    assert decide("running", {"hda_image": uri}, None).parameters == {"hda_image": uri}  # which `start` refuses


def test_reply_of_status_is_parsed():
    reply = {**msgspec.json.decode(msgspec.json.encode(kept())), "success": True, "of a newer version": 1}
    assert parse_status(reply) == kept()
    assert parse_status({"success": False, "code": "not_found", "message": "No."}) is None
    with pytest.raises(GoalError, match="Away"):
        parse_status({"success": False, "code": "hypervisor_unavailable", "message": "Away."})


def test_comments_say_where_disks_are():
    said = comment("halted", "a", vm("running"), vm("halted", SAVED), dry_run=False)
    assert said == f"a is halted now. hda: {PLACE} (sha256 0a)."
    both = {"hda": {**SAVED["hda"], "kept": "/vms/hda.qcow2"}}
    said = comment("halted", "a", vm("halted", both), vm("halted", both), dry_run=False)
    assert said == f"a is halted. hda: {PLACE} (sha256 0a). hda is kept in /vms/hda.qcow2."
    assert comment("halted", "a", kept(), kept(), dry_run=False) == "a is halted. hda is kept in /vms/hda.qcow2."
    assert comment("absent", "a", vm("running"), None, dry_run=True) == "a would be absent. Nothing is saved."
    unsaved = vm("failed to save", {"hda": {"save_to": PLACE, "kept": "/failed_to_save/a/hda.qcow2"}})
    left = "a is absent now. hda is kept in /failed_to_save/a/hda.qcow2."
    assert comment("absent", "a", unsaved, None, dry_run=False) == left
    assert comment("halted", "a", None, None, dry_run=False) == "a is not here: nothing of it runs."


def test_state_without_waiting_needs_everything_requested():
    waiting = GoalStep("wait", "It is being started.")
    assert timeout_message("running", vm("starting"), waiting, 0) == ""
    assert timeout_message("paused", vm("starting"), waiting._replace(more=True), 0).endswith("Apply again.")
    assert "within 3 s" in timeout_message("running", vm("starting"), waiting, 3)


def test_parameters_have_the_types_of_the_contract():
    assert parse_parameters({"mem_size": "64", "cpu_count": None, "soft_list": "git, curl"}) == {
        "mem_size": 64,
        "soft_list": ["git", "curl"],
    }
    with pytest.raises(GoalError, match="mem_size"):
        parse_parameters({"mem_size": "much"})
    with pytest.raises(GoalError, match="timeout="):
        seconds("soon")


@pytest.mark.parametrize(
    "given", [{"hda_save_to": True}, {"network": 1}, {"soft_list": [5]}, {"ssh_keys": 1.5}, {"hostname": 42}], ids=str
)
def test_value_of_an_sls_that_is_no_word_is_refused(given):
    with pytest.raises(GoalError) as refused:
        parse_parameters(given)
    assert HOW in str(refused.value)


@pytest.mark.parametrize("name", [42, 1.1, True, None, ["a"]])
def test_name_of_an_sls_that_is_no_word_is_refused(name):
    with pytest.raises(GoalError) as refused:
        name_of(name)
    assert HOW in str(refused.value)
    assert name_of("0042") == "0042"


def test_lists_of_an_sls_are_those_of_its_vm():
    """A second apply sees no difference, whatever form the lists have."""
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJqfzP me at home"
    for keys in (f"{key}\n", [f" {key} \n"], [key]):
        assert parse_parameters({"ssh_keys": keys, "soft_list": ["git"]}) == {"ssh_keys": [key], "soft_list": ["git"]}


def test_start_fetches_its_images():
    known, unknown = ({"size": size, "cached": False} for size in (7, None))
    plan = {"success": True, "message": "Fine.", "fits": True, "bytes_to_fetch": 7, "images": [known]}
    assert (start_obstacle(plan), to_fetch(plan)) == ("", "7 bytes to fetch.")
    assert to_fetch({**plan, "images": [known, unknown]}) == "At least 7 bytes to fetch."
    assert to_fetch({**plan, "images": [known, {**unknown, "cached": True}]}) == "7 bytes to fetch."
    assert start_obstacle({**plan, "fits": False, "message": "Full."}) == "Full."
    assert start_obstacle({"success": False, "message": "Not there."}) == "Not there."
