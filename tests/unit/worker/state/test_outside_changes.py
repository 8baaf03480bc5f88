"""Record against domain: each phase, each power, each place of a disk, with and without a job of libvirt."""

from datetime import UTC, datetime
from itertools import product

import msgspec
import pytest

from worker_service.contract import HaltCause, Spec, Status
from worker_service.core.errors import Refused
from worker_service.hypervisor.base import DomainState, Power
from worker_service.images.overlay import Layer
from worker_service.state.command_rules import after_shutdown, after_start
from worker_service.state.lifecycle import Evidence, Step, after_halt, halt_cause, message_of, next_step, status_of
from worker_service.state.outside_changes import (
    OFF_WITH_DISKS,
    disks_at_halt,
    moved_disks,
    require_no_job,
    started_outside,
    was_started,
)
from worker_service.state.record import SETTLED, TRANSITIONS, Disk, Phase, Record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
UUID = "6d6c7f0e-0000-4000-8000-000000000000"
FOLDER = f"/data/vms/{UUID}"
BASE = Layer("/data/images/sha256/ab", "raw")
OVERLAY = Layer(f"{FOLDER}/hda.qcow2")
CHAINS = {
    "as made": (OVERLAY, BASE),
    "snapshot": (Layer(f"{FOLDER}/hda.s"), OVERLAY, BASE),
    "snapshot elsewhere": (Layer("/srv/s"), OVERLAY, BASE),
    "two snapshots": (Layer(f"{FOLDER}/hda.t"), Layer("/srv/s"), OVERLAY, BASE),
    "pulled": (OVERLAY,),
    "copy": (Layer("/srv/copy", "raw"),),
    "device": (Layer("block /dev/sdb", "raw"),),
}
NOTED = {
    "as made": Disk(base="ab", base_format="raw"),
    "snapshot": Disk(base="ab", base_format="raw", chain=(Layer("hda.s"), Layer("hda.qcow2"))),
    "snapshot elsewhere": Disk(base="ab", base_format="raw", chain=(Layer("/srv/s"), Layer("hda.qcow2"))),
    "two snapshots": Disk(base="ab", base_format="raw", chain=(Layer("hda.t"), Layer("/srv/s"), Layer("hda.qcow2"))),
    "pulled": Disk(base="ab", base_format="raw", on_base=False),
    "copy": Disk(base="ab", base_format="raw", chain=(Layer("/srv/copy", "raw"),), on_base=False),
    "device": Disk(base="ab", base_format="raw", chain=(Layer("block /dev/sdb", "raw"),), on_base=False),
}
ON_TOP = {
    ("as made", "snapshot"), ("as made", "snapshot elsewhere"), ("as made", "two snapshots"),
    ("snapshot elsewhere", "two snapshots"), ("as made", "pulled"),
}  # fmt: skip
"""Former and present place of a disk whose data is beyond doubt in the present one."""


def record(phase=Phase.UP, place="as made", **changes):
    spec = Spec(name="a", hda_image="file:///images/a.raw", hda_save_to="file:///saved/a.qcow2")
    made = Record(uuid=UUID, spec=spec, generation=1, phase=phase, phase_since=NOW, created_at=NOW)
    return msgspec.structs.replace(made, **{"disks": {"hda": NOTED[place]}, **changes})


def domain(power, place="as made", **changes):
    return DomainState(power, disks={"hda": CHAINS[place]} if power is not Power.ABSENT else {}, **changes)


@pytest.mark.parametrize(("phase", "power", "place"), list(product(Phase, Power, CHAINS)))
def test_place_of_a_disk_is_noted_while_its_guest_runs(phase, power, place):
    """An edit of a definition that is off moves no data."""
    observed = domain(power, place)
    runs = observed.on and (phase is Phase.UP or phase in OFF_WITH_DISKS)
    expected = {"hda": NOTED[place]} if runs and place != "as made" else {}
    assert moved_disks(record(phase), observed) == expected
    if expected:
        again = record(phase, place)
        assert moved_disks(again, observed) == {}


@pytest.mark.parametrize(("phase", "power", "job"), list(product(Phase, Power, ["", "migration"])))
def test_step_follows_phase_power_and_job(phase, power, job):
    observed = domain(power, job=job)
    step = next_step(record(phase), observed)
    started = phase in OFF_WITH_DISKS and observed.on
    assert was_started(record(phase), observed) is started
    if job and phase is not Phase.DESTROYING:
        assert step is None
    elif started:
        assert step is Step.NOTE_START
        assert status_of(record(phase), observed) in {Status.RUNNING, Status.SUSPENDED}
        assert "started from outside" in message_of(record(phase), observed)
    elif phase is Phase.UP:
        assert step is (None if observed.on else Step.NOTE_HALT)
    else:
        assert (step is None) == (phase in SETTLED)


@pytest.mark.parametrize(("former", "present"), list(product(CHAINS, CHAINS)))
def test_halted_disk_is_trusted_on_top_of_the_known_one(former, present):
    moved, in_doubt = disks_at_halt(record(place=former), domain(Power.OFF, present))
    if former == present:
        assert (moved, in_doubt) == ({}, ())
    elif (former, present) in ON_TOP:
        assert (moved, in_doubt) == ({"hda": NOTED[present]}, ())
    else:
        assert (moved, in_doubt) == ({}, ("hda",))


def test_domain_that_is_gone_says_nothing_about_disks():
    assert disks_at_halt(record(place="copy"), domain(Power.ABSENT)) == ({}, ())


@pytest.mark.parametrize("phase", sorted(OFF_WITH_DISKS))
def test_started_vm_is_up_and_will_be_saved_again(phase):
    flat = Disk(base="ab", base_format="raw", flat_file="f", flat_sha256="0", flat_size=1, saved_to="file:///x")
    flat = msgspec.structs.replace(flat, saved_sha256="0", saved_size=1, own_saves=("file:///x#sha256=0",))
    known = record(phase, disks={"hda": flat}, halt_cause=HaltCause.GUEST, shutdown_asked=True)
    up = started_outside(known, domain(Power.RUNNING, "snapshot"), NOW, "boot", {"hda": "v2"})
    assert Phase.UP in TRANSITIONS[phase]
    assert (up.phase, up.halt_cause, up.shutdown_asked, up.host_boot) == (Phase.UP, None, False, "boot")
    own = {"target_version": "v2", "own_saves": ("file:///x#sha256=0",)}  # which it may replace
    assert up.disks == {"hda": msgspec.structs.replace(NOTED["snapshot"], **own)}


HALTS = [
    (domain(Power.OFF, cause=HaltCause.SAVED), None, HaltCause.SAVED),
    (domain(Power.OFF, saved_memory=True), None, HaltCause.SAVED),
    (domain(Power.OFF, saved_memory=True, cause=HaltCause.GUEST), None, HaltCause.SAVED),
    (domain(Power.OFF, cause=HaltCause.MIGRATED), None, HaltCause.MIGRATED),
    (domain(Power.OFF), HaltCause.MIGRATED, HaltCause.MIGRATED),
    (domain(Power.ABSENT), HaltCause.MIGRATED, HaltCause.MIGRATED),
    (domain(Power.ABSENT), HaltCause.GUEST, HaltCause.KILLED),
    (domain(Power.ABSENT), None, HaltCause.KILLED),
]


@pytest.mark.parametrize(("observed", "logged", "cause"), HALTS)
@pytest.mark.parametrize("requested", [True, False])
def test_guest_that_goes_on_elsewhere_is_kept(observed, logged, cause, requested):
    known = record(shutdown_asked=requested)
    assert halt_cause(known, observed, Evidence(logged=logged)) is cause
    if cause is not HaltCause.KILLED:
        assert after_halt(known, cause) is Phase.KEPT


def test_migrated_vm_is_neither_started_nor_saved():
    away = record(Phase.KEPT, halt_cause=HaltCause.MIGRATED)
    with pytest.raises(Refused, match="virsh migrate"):
        after_start(away, away.spec, None, NOW, {})
    with pytest.raises(Refused, match="virsh migrate"):
        after_shutdown(away, None, NOW)


def test_saved_memory_fits_only_the_same_parameters():
    kept = record(Phase.KEPT, halt_cause=HaltCause.SAVED)
    larger = msgspec.structs.replace(kept.spec, mem_size=4096)
    assert after_start(kept, larger, None, NOW, {}).phase is Phase.BUILDING
    with pytest.raises(Refused, match="mem_size"):
        after_start(kept, larger, None, NOW, {}, saved_memory=True)
    assert after_start(kept, kept.spec, None, NOW, {}, saved_memory=True).phase is Phase.BUILDING


def test_command_waits_for_the_end_of_a_job():
    require_no_job(record(), domain(Power.RUNNING))
    with pytest.raises(Refused, match="virsh domjobabort a"):
        require_no_job(record(), domain(Power.RUNNING, job="backup"))
    assert "backup" in message_of(record(), domain(Power.RUNNING, job="backup"))
    assert status_of(record(), domain(Power.PAUSED, job="migration")) is Status.RUNNING
