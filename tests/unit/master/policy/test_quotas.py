"""Quotas: usage of VMs and violations."""

import pytest

from master_service.policy.quotas import ResourceUsage, quota_violation, total, usage_of
from worker_service.contract import Spec


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
    assert usage_of(spec(**disks)) == ResourceUsage(vms=1, cpus=2, mem_mib=256, disk_mib=mib)


def test_usage_of_several_vms_is_added():
    assert total([spec(), spec(mem_size=4)]) == ResourceUsage(vms=2, cpus=4, mem_mib=260)
    assert total([]) == ResourceUsage()


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
    message = quota_violation(ResourceUsage(vms=2, cpus=4, mem_mib=512), usage_of(spec()), limits)
    assert message.startswith(why)
    assert bool(message) is bool(why)


def test_excess_does_not_block_other_changes():
    assert quota_violation(ResourceUsage(vms=9), ResourceUsage(), {"vms": 1}) == ""


def test_usage_is_subtracted_amount_by_amount():
    more = ResourceUsage(vms=3, cpus=8, mem_mib=512, disk_mib=10)
    assert more - ResourceUsage(vms=1, cpus=2, mem_mib=256, disk_mib=4) == ResourceUsage(
        vms=2, cpus=6, mem_mib=256, disk_mib=6
    )
