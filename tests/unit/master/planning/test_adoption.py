"""Table tests of adoption: the VM goes on as it is, and a VM that the master could not manage is refused."""

import msgspec
import pytest

from master_service.core.errors import Conflict
from master_service.planning.adoption import adopt
from master_service.planning.observed import ObservedStatus
from master_service.planning.planner import decide
from master_service.planning.vm import DesiredStatus, Worker
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, SETTINGS, SPEC, status
from worker_service.contract import OWNER_FEATURE

W1 = Worker(id="w1", capacity=msgspec.structs.replace(CAPACITY, features=(OWNER_FEATURE,)), seen_at=EARLIER, key="k")
STATES = {
    ObservedStatus.STARTING: (DesiredStatus.RUNNING, None),
    ObservedStatus.INSTALLING: (DesiredStatus.RUNNING, "modify"),
    ObservedStatus.RUNNING: (DesiredStatus.RUNNING, "modify"),
    ObservedStatus.SUSPENDED: (DesiredStatus.PAUSED, "modify"),
    ObservedStatus.SAVING: (DesiredStatus.HALTED, None),
    ObservedStatus.HALTED: (DesiredStatus.HALTED, None),
    ObservedStatus.CRASHED: (DesiredStatus.HALTED, None),
    ObservedStatus.FAILED_TO_START: (DesiredStatus.HALTED, None),
    ObservedStatus.FAILED_TO_SAVE: (DesiredStatus.HALTED, "modify"),
}
"""Reported status -> desired status, and the only command that follows: `modify`, which brings the owner."""


def adopted(found):
    return adopt(found, W1, "ann", "id-of-ann", NOW)


@pytest.mark.parametrize("generation", [0, 7])
@pytest.mark.parametrize("observed", STATES, ids=lambda each: each.name)
def test_adopted_vm_goes_on_as_it_is(observed, generation):
    vm = adopted(status(observed, generation))
    desired, verb = STATES[observed]
    assert (vm.desired.status, vm.delivered) == (desired, True)
    command = decide(vm, NOW, SETTINGS).command
    assert (command.verb if command else None) == verb
    if command:
        assert command.generation == generation + 1


def test_adopted_vm_has_an_owner_its_worker_and_its_report():
    found = status(generation=7)
    vm = adopted(found)
    assert (vm.uuid, vm.desired.name, vm.desired.spec, vm.desired.worker) == (found.uuid, found.name, SPEC, "w1")
    assert (vm.desired.owner, vm.desired.owner_id, vm.desired.version) == ("ann", "id-of-ann", 1)
    assert (vm.observed.status, vm.observed.real_at, vm.worker) == (found, NOW, W1)


@pytest.mark.parametrize(
    ("changes", "message", "hint"),
    [
        ({"spec": None}, "w1 does not report the parameters of web01", "Upgrade"),
        (
            {"spec": msgspec.structs.replace(SPEC, hda_image="https://u:p@host/a", hda_save_to="https://h/b?sig=x")},
            "secret (hda_image, hda_save_to), which w1 reports only as ***",
            "images.stores",
        ),
        ({"name": "0042"}, "may be named '0042'", "stays on w1"),
        ({"name": "1" * 32}, "would take the name for something else", "stays on w1"),
    ],
    ids=["no parameters", "secrets", "a number", "like a uuid"],
)
def test_vm_that_the_master_cannot_manage_is_refused(changes, message, hint):
    with pytest.raises(Conflict) as refused:
        adopted(status(**changes))
    assert message in str(refused.value)
    assert hint in refused.value.hint
