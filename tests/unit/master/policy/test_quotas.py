"""Quotas: usage of VMs and violations."""

from datetime import timedelta

import pytest

from master_service.planning.observed import ObservedStatus
from master_service.planning.vm import DesiredStatus, DispatchState, VMProblem
from master_service.policy.quotas import (
    ResourceUsage,
    change_limits,
    grows,
    quota_violation,
    total,
    usage_of,
    usage_of_spec,
)
from tests.unit.master.builders import EARLIER, NOW, vm
from worker_service.contract import Code, Spec


def spec(**more):
    return Spec(**{"name": "a", "mem_size": 256, "cpu_count": 2, "hda_image": "file:/a"} | more)


@pytest.mark.parametrize(
    ("disks", "mib"),
    [
        ({}, 0),
        ({"hda_image": "blank:20G"}, 20480),
        ({"hda_image": "blank:5M", "hdb_image": "blank:1T"}, 5 + 1024 * 1024),
        ({"hdb_image": "https://host/blank:1G"}, 0),
    ],
)
def test_vm_counts_by_its_parameters(disks, mib):
    assert usage_of_spec(spec(**disks)) == ResourceUsage(vms=1, cpus=2, mem_mib=256, disk_mib=mib)


def test_usage_of_several_vms_is_added():
    vms = [vm(spec=spec()), vm(DesiredStatus.HALTED, ObservedStatus.HALTED, spec=spec(mem_size=4))]
    assert total(vms) == ResourceUsage(vms=2, cpus=4, mem_mib=260)
    assert total([]) == ResourceUsage()


@pytest.mark.parametrize("desired", [each for each in DesiredStatus if each is not DesiredStatus.DESTROYED])
@pytest.mark.parametrize("observed", list(ObservedStatus))
@pytest.mark.parametrize("taken", [2, 1])
def test_failed_start_counts_only_while_it_is_retried(desired, observed, taken):
    subject = vm(desired, observed, generation=2, taken=taken, spec=spec())
    retried = taken == 1 and desired is not DesiredStatus.HALTED
    failed = observed is ObservedStatus.FAILED_TO_START and not retried
    assert usage_of(subject) == (ResourceUsage(vms=1) if failed else usage_of_spec(spec()))


def test_start_refused_for_good_counts_as_failed():
    push = DispatchState(user_generation=1, generation=1, verb="start", sent_at=EARLIER)
    full, bad = (VMProblem(code=code, message="no") for code in (Code.NO_ROOM, Code.POLICY))
    for problem, cpus in ((full, 2), (bad, 0)):
        refused = push.refused(problem, now=NOW, again_in=timedelta())
        assert usage_of(vm(observed=ObservedStatus.UNREPORTED, dispatch=refused, spec=spec())).cpus == cpus
        again = vm(observed=ObservedStatus.UNREPORTED, generation=2, dispatch=refused, spec=spec())
        assert usage_of(again).cpus == 2


@pytest.mark.parametrize(
    ("limits", "why"),
    [
        ({}, ""),
        ({"vms": None, "cpus": None}, ""),
        ({"vms": 3, "cpus": 6, "mem_mib": 768}, ""),
        ({"vms": 2}, "3 VMs of 2 (2 used, 1 more requested)"),
        (
            {"cpus": 5, "mem_mib": 0},
            "6 processors of 5 (4 used, 2 more requested); 768 MiB of memory of 0 (512 used, 256",
        ),
        ({"disk_mib": 0}, ""),
    ],
)
def test_excess_is_reported_with_its_numbers(limits, why):
    message = quota_violation(ResourceUsage(vms=2, cpus=4, mem_mib=512), usage_of_spec(spec()), limits)
    assert message.startswith(why)
    assert bool(message) is bool(why)


def test_excess_does_not_block_other_changes():
    assert quota_violation(ResourceUsage(vms=9), ResourceUsage(), {"vms": 1}) == ""


def test_usage_is_subtracted_amount_by_amount():
    more = ResourceUsage(vms=3, cpus=8, mem_mib=512, disk_mib=10)
    assert more - ResourceUsage(vms=1, cpus=2, mem_mib=256, disk_mib=4) == ResourceUsage(
        vms=2, cpus=6, mem_mib=256, disk_mib=6
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [({}, False), ({"vms": 1}, True), ({"cpus": -1, "mem_mib": 1}, True), ({"cpus": -1, "disk_mib": -5}, False)],
)
def test_any_amount_that_is_more_counts_as_growth(more, expected):
    assert grows(ResourceUsage(**more)) is expected


@pytest.mark.parametrize(
    ("before", "changes", "after"),
    [
        ({}, {}, {}),
        ({"vms": 3, "cpus": 8}, {"cpus": 2}, {"vms": 3, "cpus": 2}),
        ({"vms": 3}, {"cpus": 0}, {"vms": 3, "cpus": 0}),
        ({"vms": 3, "cpus": 8}, {"cpus": None}, {"vms": 3, "cpus": None}),
        ({"vms": None, "cpus": 8}, {"cpus": "usual"}, {"vms": None}),
        ({"vms": 3}, {"cpus": "usual"}, {"vms": 3}),
    ],
)
def test_change_of_limits_leaves_the_others(before, changes, after):
    assert change_limits(before, changes) == after
