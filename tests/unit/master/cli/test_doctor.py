"""Each fault that `saltern doctor` knows, from the master's answers, and its advice."""

import pytest

from master_service.cli.commands.doctor import of_readiness, of_version
from master_service.cli.common.findings import VM_FIXES, WORKER_FAULTS, of_profile, of_vms, of_workers
from master_service.core.errors import NEVER_ARRIVED
from master_service.planning.observed import HELD
from worker_service.contract import Code

GIB = 2**30
WELL = {
    "id": "w1",
    "enrolled": True,
    "reachable": True,
    "unreachable_since": None,
    "age_s": 10.0,
    "version": "1",
    "problem": None,
    "draining": False,
    "fenced_at": None,
    "clock_skew_s": 0.4,
    "unassigned_vms": [],
    "capacity": {"hypervisors": ["kvm"], "disk_free": 100 * GIB},
}
WORKERS = [
    ({"reachable": False, "unreachable_since": "2026-01-01", "problem": "odd"}, "unreachable since 2026-01-01 (odd)"),
    (
        {"reachable": False, "unreachable_since": "2026-01-02", "fenced_at": "2026-01-01"},
        "is fenced, and unreachable since 2026-01-02",
    ),
    ({"enrolled": False}, "waits to be enrolled"),
    ({"fenced_at": "2026-01-01", "problem": "it was fenced, and yet it answers"}, "it was fenced, and yet it answers"),
    ({"problem": "a minion of this name presents another key: k"}, "presents another key: k"),
    ({"age_s": 901.0}, "last answered 901 s ago"),
    ({"capacity": None}, "has not reported its capacity yet"),
    ({"capacity": {"hypervisors": [], "disk_free": 100 * GIB}}, "no hypervisor driver"),
    (
        {"drivers": {"kvm": {"problem": ""}, "xen": {"problem": "This host does not run on Xen. Boot it with Xen."}}},
        "its hypervisor xen does not work: This host does not run on Xen. Boot it with Xen",
    ),
    ({"capacity": {"hypervisors": ["kvm"], "disk_free": GIB}}, "1.0 GiB are free"),
    (
        {"capacity": {"hypervisors": ["kvm"], "disk_free": 100 * GIB, "guests_isolated": False}},
        "reach it and its private networks",
    ),
    ({"clock_skew_s": -31.0}, "its clock is -31 s off"),
    ({"unassigned_vms": [{"name": "a", "uuid": "u", "owner": "ann"}]}, "has a (u) of ann"),
]


def test_worker_that_is_well():
    (finding,) = of_workers([WELL])
    assert (finding.ok, finding.part) == (True, "worker w1")
    assert "kvm" in finding.message


@pytest.mark.parametrize("chosen", ["dedicated", "shared"])
@pytest.mark.parametrize("in_force", ["dedicated", "shared"])
def test_profile_of_the_salt_master(chosen, in_force):
    """Chosen and measured: a blacklist that is not there is a fault, and so is one that the site does not expect."""
    finding = of_profile({"chosen": chosen, "in_force": in_force})
    assert finding.ok is (chosen == in_force)
    assert f"profile {chosen}" in finding.message
    assert finding.ok or "saltern_dedicated.conf" in finding.fix


def test_worker_without_a_driver_that_works():
    drivers = {"kvm": {"problem": "a"}, "xen": {"problem": "b."}}
    findings = list(of_workers([WELL | {"drivers": drivers}]))
    assert [finding.message.partition(":")[2].strip() or finding.message for finding in findings] == [
        "a",
        "b",
        "has no hypervisor driver that works, so it gets no new VMs",
    ]


def test_worker_with_several_drivers_says_how_guests_run():
    drivers = {"kvm": {"problem": "", "acceleration": "tcg"}, "xen": {"problem": "", "acceleration": ""}}
    (finding,) = of_workers([WELL | {"drivers": drivers}])
    assert finding.ok
    assert finding.message.startswith("kvm (tcg), xen; version 1; ")


def test_vm_of_the_site_may_stay_unmanaged():
    (finding,) = of_workers([WELL | {"unassigned_vms": [{"name": "a", "uuid": "u", "owner": ""}]}])
    assert finding.ok
    assert "does not manage: 1 (saltern list --unmanaged)" in finding.message


@pytest.mark.parametrize(("change", "message"), WORKERS)
def test_worker_with_a_fault(change, message):
    (finding,) = of_workers([WELL | change])
    assert not finding.ok
    assert message in finding.message
    assert finding.fix
    assert "{" not in finding.message + finding.fix


def test_each_fault_of_a_worker_is_in_the_tables():
    """With the one of two versions, which the next test has."""
    assert len(WORKERS) + 1 == len(WORKER_FAULTS)


def test_drained_worker_is_well_and_shown_as_such():
    (finding,) = of_workers([WELL | {"draining": True}])
    assert finding.ok
    assert finding.message.startswith("drained: it gets no new VMs before `saltern undrain w1`; kvm; version 1")


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


def entry(code="", **more):
    problems = [{"code": code, "message": "The cause."}] if code else []
    fields = {"name": "web", "worker": "w1", "status": "failed", "reason": "the reason", "message": "The message."}
    return fields | {"problems": problems} | more


CODES = {*Code, *NEVER_ARRIVED, *HELD.values(), "failed_to_save", "failed_to_start", "crashed", "gone", "stuck"} - {""}
"""Codes of problems that a VM can have, besides those that the next table calls passing."""
FIXES = {
    "gone": "destroy it here too: saltern destroy web",
    "destroyed": "destroy it here too: saltern destroy web",
    "failed_to_save": "saltern save-retry web; its disks are safe on w1",
    "failed_to_start": "saltern start web",
    "crashed": "saltern start web",
    "no_effect": "is shut down from inside",
    "stuck": "helper.log on w1",
    "no_room": "saltern plan",
    "policy": "what w1 permits",
    "bad_image": "an image that w1 can read",
    "name_taken": "the other domain of this name on w1",
    "bad_request": "after: saltern destroy web",
    "too_large": "after: saltern destroy web",
    "unsupported": "after: saltern destroy web",
    "hypervisor_unavailable": "systemctl status libvirtd",
    "disk_unavailable": "its data root is mounted",
    "salt_unavailable": "found above of salt api",
    "salt_denied": "found above of salt api",
    "unreachable": "once w1 answers",
    "migrated": "once it is back",
    "elsewhere": "once that domain is gone",
}
RETRIED = set(VM_FIXES) - set(FIXES)


def test_each_code_of_a_problem_has_a_fix():
    assert CODES - {"busy"} <= set(VM_FIXES)


@pytest.mark.parametrize("code", sorted(VM_FIXES))
def test_vm_with_a_problem_has_its_sentence_and_fix(code):
    (found,) = of_vms([entry(code)])
    assert (found.ok, found.part, found.message) == (False, "VM web", "failed; the reason; The cause.")
    assert FIXES.get(code, "it is tried again by itself") in found.fix
    assert "{" not in found.fix


@pytest.mark.parametrize("code", sorted(set(VM_FIXES) - {"unreachable"}))
def test_fix_waits_for_a_silent_worker(code):
    (found,) = of_vms([entry(problems=[{"code": "unreachable"}, {"code": code}])], workers_known=True)
    assert found.fix.startswith("once w1 answers: ")


@pytest.mark.parametrize(
    ("vm", "message"),
    [
        (entry("", reason=""), "failed; The message."),
        (entry("crashed", reason="the cause"), "failed; the cause"),
        (entry("crashed", reason="", message=""), "failed; The cause."),
        (entry("odd", status="pending"), "pending; the reason; The cause."),
        (entry("unreachable", status="running", reason="", message="It is running."), None),
        (entry("busy", status="running"), None),
        (entry("drained", status="running"), None),
        (entry("fenced", status="running"), None),
        (entry("worker", status="running"), None),
        (entry("crashed", status="halted"), None),
        (entry("", status="pending"), None),
    ],
)
def test_vm_is_a_fault_as_the_list_shows_it(vm, message):
    (found,) = of_vms([vm], workers_known=True)
    assert (found.ok, found.message) == ((True, "none needs a user") if message is None else (False, message))


def test_first_code_of_the_table_decides():
    codes = [{"code": code} for code in ("policy", "failed_to_save", "unreachable", "elsewhere")]
    (found,) = of_vms([entry(problems=codes)])
    assert "once that domain is gone" in found.fix


def test_vms_are_found_well():
    assert [(finding.ok, finding.message) for finding in of_vms([])] == [(True, "there are none")]
    assert [finding.ok for finding in of_vms([entry(status="running", reason="")])] == [True]
    (unplaced,) = of_vms([entry("policy", worker=None)])
    assert "what its worker permits" in unplaced.fix


def test_silent_worker_names_its_vms():
    silent = WELL | {"reachable": False, "unreachable_since": "2026-01-01"}
    vms = [entry("unreachable", name=f"v{number:02}", status="running") for number in range(11)]
    (worker,) = of_workers([silent], [*vms, entry(worker="w2")])
    assert worker.message == (
        "unreachable since 2026-01-01; last status shown: v00, v01, v02, v03, v04, v05, v06, v07, v08, v09, …"
    )
    assert len(list(of_vms(vms))) == 11  # without the findings about workers
