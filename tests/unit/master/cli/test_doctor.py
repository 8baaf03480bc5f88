"""Each fault that `saltern doctor` knows, from the master's answers, and its advice."""

import pytest

from master_service.cli.commands.doctor import of_readiness, of_version, of_vms, of_workers

GIB = 2**30
WELL = {
    "id": "w1",
    "enrolled": True,
    "reachable": True,
    "unreachable_since": None,
    "age_s": 10.0,
    "version": "1",
    "problem": None,
    "clock_skew_s": 0.4,
    "unassigned_vms": [],
    "capacity": {"hypervisors": ["kvm"], "disk_free": 100 * GIB},
}
WORKERS = [
    ({"reachable": False, "unreachable_since": "2026-01-01", "problem": "odd"}, "unreachable since 2026-01-01 (odd)"),
    ({"age_s": 901.0}, "last answered 901 s ago"),
    ({"capacity": None}, "has not reported its capacity yet"),
    ({"capacity": {"hypervisors": [], "disk_free": 100 * GIB}}, "no hypervisor driver"),
    ({"capacity": {"hypervisors": ["kvm"], "disk_free": GIB}}, "1.0 GiB are free"),
    (
        {"capacity": {"hypervisors": ["kvm"], "disk_free": 100 * GIB, "guests_isolated": False}},
        "reach it and its private networks",
    ),
    ({"clock_skew_s": -31.0}, "its clock is -31 s off"),
    ({"unassigned_vms": [{"name": "a", "uuid": "u"}]}, "runs a (u)"),
]


def test_worker_that_is_well():
    (finding,) = of_workers([WELL])
    assert (finding.ok, finding.part) == (True, "worker w1")
    assert "kvm" in finding.message


@pytest.mark.parametrize(("change", "message"), WORKERS)
def test_worker_with_a_fault(change, message):
    (finding,) = of_workers([WELL | change])
    assert not finding.ok
    assert message in finding.message
    assert finding.fix


def test_workers_of_two_versions():
    findings = list(of_workers([WELL, WELL | {"id": "w2", "version": "2"}]))
    assert [finding.ok for finding in findings] == [False, False]
    assert "is version 2; there are 1, 2" in findings[1].message


def test_version_differences_are_reported():
    assert of_version({"version": "1"}, "1").ok
    assert not of_version({"version": "2"}, "1").ok


@pytest.mark.parametrize("part", ["database", "salt_api", "event_stream", "workers", "something_new"])
def test_failed_checks_of_the_master_are_reported(part):
    (bad,) = of_readiness({"checks": {part: {"ok": False, "message": "broken"}}})
    assert (bad.ok, bad.message) == (False, "broken")
    assert bad.fix
    assert of_readiness({"checks": {part: {"ok": True, "message": "fine"}}})[0].ok


def test_vms_that_wait_for_a_person():
    save = {"name": "a", "worker": "w1", "message": "no room", "reason": "", "problems": [{"code": "failed_to_save"}]}
    start = {"name": "b", "worker": "w1", "message": "", "reason": "refused", "problems": [{"code": "policy"}]}
    findings = list(of_vms([save, start]))
    assert [finding.ok for finding in findings] == [False, False]
    assert "saltern save-retry a" in findings[0].fix
    assert "saltern start b" in findings[1].fix
    assert [finding.ok for finding in of_vms([])] == [True]


@pytest.mark.parametrize("code", ["migrated", "elsewhere"])
def test_vm_that_runs_elsewhere_says_how_it_comes_back(code):
    problems = [{"code": "worker", "message": "odd"}, {"code": code, "message": "w2 runs it. Migrate it back."}]
    (found,) = of_vms([{"name": "a", "worker": "w1", "message": "It is off.", "reason": "r", "problems": problems}])
    assert (found.ok, found.message) == (False, "w2 runs it. Migrate it back.")
    assert "goes on by itself" in found.fix


def test_vm_destroyed_on_its_worker_is_no_fault():
    gone = {"name": "a", "worker": "w1", "message": "", "reason": "it was destroyed", "problems": [{"code": "gone"}]}
    start = {"name": "b", "worker": "w1", "message": "", "reason": "refused", "problems": [{"code": "policy"}]}
    alone = list(of_vms([gone]))
    assert [(finding.ok, finding.part) for finding in alone] == [(True, "VMs"), (True, "VM a")]
    assert alone[1].message == "it was destroyed (saltern destroy a), or start it from its images"
    assert [finding.ok for finding in of_vms([gone, start])] == [True, False]
