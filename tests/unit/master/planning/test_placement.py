"""Placement: which worker a VM starts on, and the reason why none fits."""

import dataclasses

import msgspec
import pytest

from master_service.core.audience import full_text, public_text
from master_service.planning.placement import (
    Candidate,
    WorkerState,
    fitting_workers,
    incapable,
    never_starts,
    place,
    too_large_for_all,
    worker_states,
)
from master_service.planning.vm import Worker
from tests.unit.master.builders import CAPACITY, EARLIER, NOW, SPEC, vm
from worker_service.contract import KEEP_FEATURE, Capabilities, Taken


def worker(name="w1", *, draining=False, unreachable_since=None, **capacity):
    return Worker(
        id=name,
        key="k",
        capacity=msgspec.structs.replace(CAPACITY, **capacity),
        draining=draining,
        unreachable_since=unreachable_since,
    )


def candidates(*workers):
    return [Candidate(worker=w) for w in workers]


def driven(name="w1", **capacity):
    """A worker with tables of capabilities: `driven(kvm=Capabilities())`."""
    drivers = {each: capacity.pop(each) for each in ("kvm", "xen", "vbox") if each in capacity}
    return worker(name, hypervisors=tuple(drivers), drivers=drivers, **capacity)


ALL = Capabilities()
NO_USER = Capabilities(networks=("none", "bridge"))
NO_CD = Capabilities(cd=False)
LACKS_USER = "offers no network 'user' on xen: use none or bridge"
LACKS_CD = "offers no CD drive on xen: leave out cd_image"
AWAY = Capabilities(problem="libvirtd does not answer: systemctl status libvirtd.")
NEEDS = "it needs 512 MiB of memory and 1 processor on one worker"
ROOM = (f"no worker has room for it: {NEEDS}", f"worker w1 has no room for it: {NEEDS}")
CLOSED = ("no worker takes new VMs now; ask an administrator", "worker w1 takes no new VMs now; ask an administrator")
KIND = ("no worker runs x86_64 on kvm", "no worker runs x86_64 on kvm")
REFUSALS = [
    (worker(hypervisors=("xen",)), "w1 has no kvm driver (it has xen)", KIND),
    (worker(arches=("i386",)), "w1 cannot run x86_64 (it runs i386)", KIND),
    (
        driven(kvm=NO_USER),
        "w1 offers no network 'user' on kvm: use none or bridge",
        ("no worker can run it: each that has kvm offers no network 'user' on kvm: use none or bridge",) * 2,
    ),
    (driven(kvm=AWAY), "w1 starts no VM on kvm now: libvirtd does not answer: systemctl status libvirtd", CLOSED),
    (driven(kvm=Capabilities(problem="\ue001a\0b")), "w1 starts no VM on kvm now: ab", CLOSED),
    (worker(mem_free=100), "w1 has 100 of 8192 MiB memory free, 512 are needed", ROOM),
    (worker(cpu_free=0), "w1 has 0 of 8 processors free, 1 are needed", ROOM),
    (worker(disk_free=0), "w1 has a full disk", ROOM),
    (worker(draining=True), "w1 is drained", CLOSED),
    (worker(unreachable_since=EARLIER), "w1 is unreachable since 2026-11-23 11:00:00 UTC", CLOSED),
    (Worker(id="w1", key="k"), "w1 has not reported its capacity yet", CLOSED),
    (dataclasses.replace(worker(), key=""), "w1 is not enrolled", CLOSED),
]


@pytest.mark.parametrize(("only", "why", "public"), REFUSALS)
def test_worker_that_does_not_fit_has_a_reason(only, why, public):
    placement = place(SPEC, candidates(only))
    assert placement.worker is None
    assert full_text(placement.reason) == f"no worker fits: {why}"
    pinned = place(SPEC, candidates(only), only.id)
    assert (public_text(placement.reason), public_text(pinned.reason)) == public


def test_worker_with_the_image_beats_more_memory():
    cached = worker("w2", mem_free=1000, images=(SPEC.hda_image,))
    assert place(SPEC, candidates(worker("w1", mem_free=8000), cached)).worker == "w2"


def test_most_free_memory_wins_then_the_name():
    assert place(SPEC, candidates(worker("w1", mem_free=1000), worker("w2", mem_free=2000))).worker == "w2"
    assert place(SPEC, candidates(worker("w2"), worker("w1"))).worker == "w1"


def test_reserved_memory_counts():
    full = Candidate(worker=worker(mem_free=600), promised_mem=512)
    placement = place(SPEC, [full])
    assert placement.worker is None
    assert "88 of 8192 MiB" in placement.reason


def test_others_learn_only_whether_any_worker_could_hold_it():
    small, other = worker("w1", mem_free=1), worker("w2", hypervisors=("xen",))
    assert public_text(place(SPEC, candidates(small, other)).reason) == f"no worker has room for it: {NEEDS}"
    two = msgspec.structs.replace(SPEC, cpu_count=2)
    assert public_text(place(two, candidates(small, other)).reason).endswith("and 2 processors on one worker")
    assert public_text(place(SPEC, candidates(other)).reason) == "no worker runs x86_64 on kvm"
    assert public_text(place(SPEC, candidates(worker("w1"), worker("w2"))).reason) == "w1 was chosen"


def test_refusal_names_what_takes_the_room():
    taken = {"on": Taken(vms=2, cpus=4, mem=1024), "kept": Taken(vms=1, cpus=4, mem=512)}
    full = Candidate(worker=worker(cpu_free=1, taken=taken), promised_cpu=1, promised_mem=512, promised_vms=1)
    assert full_text(place(SPEC, [full]).reason) == (
        "no worker fits: w1 has 0 of 8 processors free, 1 are needed (taken: on 2 (4 processors, 1024 MiB), "
        "kept 1 (4 processors, 512 MiB), promised 1 (1 processors, 512 MiB))"
    )


def test_pinned_vm_goes_nowhere_else():
    workers = candidates(worker("w1"), worker("w2", mem_free=1))
    assert place(SPEC, workers, "w1").worker == "w1"
    assert place(SPEC, workers, "w2").worker is None
    assert "worker w9 is not known" in place(SPEC, workers, "w9").reason
    assert public_text(place(SPEC, workers, "w9").reason) == "worker w9 is not known; ask an administrator"
    assert public_text(place(SPEC, []).reason) == "no worker is known; ask an administrator"


def test_no_known_worker_is_reported():
    assert "no worker is known" in place(SPEC, []).reason


def test_vm_too_large_for_all_workers_is_reported():
    workers = [worker("w1"), worker("w2", mem_total=16384), Worker(id="w3")]
    assert too_large_for_all(msgspec.structs.replace(SPEC, mem_size=16384), workers) is None
    why = too_large_for_all(msgspec.structs.replace(SPEC, mem_size=16385), workers)
    assert why == "mem_size is 16385 MiB; the largest worker has 16384 MiB in all"
    why = too_large_for_all(msgspec.structs.replace(SPEC, cpu_count=9), workers)
    assert why == "cpu_count is 9; the largest worker offers 8 in all"
    assert too_large_for_all(SPEC, [Worker(id="w3")]) is None
    assert too_large_for_all(SPEC, [driven(kvm=AWAY, mem_total=0, cpu_total=0)]) is None
    assert too_large_for_all(SPEC, [driven(kvm=AWAY), worker("w2", mem_total=100)]) is not None


def test_fenced_worker_gets_no_vm():
    fenced = Candidate(worker=dataclasses.replace(worker(), fenced_at=NOW))
    placement = place(SPEC, [fenced])
    assert placement.worker is None
    assert "fenced since" in placement.reason


@pytest.mark.parametrize(
    ("changes", "states"),
    [
        ({}, ()),
        ({"key": ""}, (WorkerState.WAITING,)),
        ({"draining": True}, (WorkerState.DRAINED,)),
        ({"fenced_at": EARLIER}, (WorkerState.FENCED,)),
        (
            {"unreachable_since": EARLIER, "fenced_at": EARLIER, "draining": True},
            (WorkerState.UNREACHABLE, WorkerState.FENCED, WorkerState.DRAINED),
        ),
    ],
)
def test_worker_without_new_vms_has_its_states(changes, states):
    assert worker_states(dataclasses.replace(worker(), **changes)) == states


def test_workers_that_fit_come_in_the_order_of_placement():
    pool = candidates(worker("w1", mem_free=600), worker("w2", mem_free=900), worker("w3", mem_free=100))
    assert fitting_workers(SPEC, pool) == ["w2", "w1"]
    assert fitting_workers(SPEC, pool)[0] == place(SPEC, pool).worker
    assert fitting_workers(SPEC, pool, "w1") == ["w1"]
    assert fitting_workers(SPEC, pool, "w3") == []


XEN = msgspec.structs.replace(SPEC, hypervisor="xen")


@pytest.mark.parametrize(
    ("spec", "pool", "pin", "full", "public"),
    [
        (SPEC, [worker(mem_free=0)], None, "", ""),  # it may get room
        (XEN, [], None, "", ""),
        (XEN, [worker(), Worker(id="w2", key="k")], None, "", ""),  # w2 has not said yet
        (XEN, [worker(), worker("w2", hypervisors=("xen",))], None, "", ""),
        (
            XEN,
            [worker(), dataclasses.replace(worker("w2", hypervisors=("xen",)), key="")],
            None,
            "w1 has no xen driver (it has kvm)",
            "no worker runs x86_64 on xen",
        ),
        (
            XEN,
            [worker(), worker("w2", hypervisors=("xen",))],
            "w1",
            "w1 has no xen driver (it has kvm)",
            "w1 does not run x86_64 on xen",
        ),
        (
            msgspec.structs.replace(SPEC, sys_arch="i386"),
            [worker(), worker("w2")],
            None,
            "w1 cannot run i386 (it runs x86_64); w2 cannot run i386 (it runs x86_64)",
            "no worker runs i386 on kvm",
        ),
        (XEN, [driven(kvm=ALL)], None, "w1 has no xen driver (it has kvm)", "no worker runs x86_64 on xen"),
        (XEN, [driven(kvm=ALL), driven("w2", xen=ALL)], None, "", ""),
        (XEN, [driven(kvm=ALL), driven("w2", xen=AWAY)], None, "", ""),  # it may work again
        (XEN, [driven(xen=NO_USER), worker("w2", hypervisors=("xen",))], None, "", ""),  # w2 has an older version
        (
            XEN,
            [driven(kvm=ALL, xen=NO_USER), driven("w2", kvm=ALL)],
            None,
            f"w1 {LACKS_USER}, or hypervisor kvm; w2 has no xen driver (it has kvm)",
            f"no worker can run it: each that has xen {LACKS_USER}, or hypervisor kvm",
        ),
        (
            msgspec.structs.replace(XEN, cd_image="file:///c"),
            [driven(xen=NO_USER), driven("w2", xen=NO_CD), driven("w3", xen=NO_CD)],
            None,
            f"w1 {LACKS_USER}; w2 {LACKS_CD}; w3 {LACKS_CD}",
            f"no worker can run it: one {LACKS_CD}; one {LACKS_USER}",
        ),
        (
            XEN,
            [driven(xen=NO_USER), driven("w2", xen=ALL)],
            "w1",
            f"w1 {LACKS_USER}",
            f"w1 {LACKS_USER}",
        ),
        (
            XEN,
            [driven(kvm=ALL), driven("w2", xen=ALL)],
            "w1",
            "w1 has no xen driver (it has kvm)",
            "w1 does not run x86_64 on xen",
        ),
    ],
)
def test_kind_that_no_worker_runs_is_known(spec, pool, pin, full, public):
    found = incapable(spec, candidates(*pool), pin)
    assert (full_text(found), public_text(found)) == (full, public)


@pytest.mark.parametrize(
    ("target", "features", "worker_id"),
    [(None, (), None), (None, (KEEP_FEATURE,), "w1"), ("", (), "w1"), ("file:/srv/saved/a", (), "w1")],
)
def test_disk_without_a_target_needs_a_worker_that_keeps_it(target, features, worker_id):
    spec = msgspec.structs.replace(SPEC, hda_save_to=target)
    placement = place(spec, candidates(worker(features=features)))
    assert placement.worker == worker_id
    if worker_id is None:
        assert "w1 has an older version of Saltern, which discards a disk" in full_text(placement.reason)
        without = "no worker runs x86_64 on kvm and keeps disks that have no place to save them to"
        assert public_text(placement.reason) == without


def test_vm_goes_where_its_hypervisor_does_what_it_needs():
    pool = [driven("w1", kvm=ALL, xen=NO_USER), driven("w2", xen=ALL), driven("w3", xen=AWAY)]
    assert place(XEN, candidates(*pool)).worker == "w2"
    assert place(SPEC, candidates(*pool)).worker == "w1"
    assert fitting_workers(msgspec.structs.replace(XEN, network="none"), candidates(*pool)) == ["w1", "w2"]


@pytest.mark.parametrize(
    ("placed", "pin", "pool", "why"),
    [
        (None, None, [driven(xen=ALL)], "w1 has no kvm driver (it has xen)"),
        (None, "w1", [driven(xen=ALL), driven("w2", kvm=ALL)], "w1 has no kvm driver (it has xen)"),
        (None, None, [driven(xen=ALL), driven("w2", kvm=ALL)], ""),
        ("w1", None, [driven(kvm=NO_CD), driven("w2", kvm=ALL)], "w1 offers no CD drive on kvm: leave out cd_image"),
        ("w1", None, [driven(kvm=AWAY)], ""),
        ("w1", None, [worker(hypervisors=("xen",))], ""),  # an older version
        ("w1", None, [Worker(id="w1", key="k")], ""),
    ],
)
def test_start_that_can_never_be_is_known(placed, pin, pool, why):
    subject = vm(worker=placed, pin=pin, spec=msgspec.structs.replace(SPEC, cd_image="file:///c"))
    assert full_text(never_starts(subject, candidates(*pool))) == why
