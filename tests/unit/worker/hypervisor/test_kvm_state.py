"""What libvirt's numbers and XML say about a domain."""

from types import SimpleNamespace

import libvirt
import pytest

from worker_service.contract import HaltCause
from worker_service.hypervisor import kvm_state
from worker_service.hypervisor.base import Power
from worker_service.hypervisor.libvirt_state import plain
from worker_service.images.overlay import Layer

STATES = [
    (libvirt.VIR_DOMAIN_RUNNING, 1, Power.RUNNING, None, ""),
    (libvirt.VIR_DOMAIN_SHUTDOWN, 1, Power.RUNNING, None, ""),
    (libvirt.VIR_DOMAIN_PMSUSPENDED, 0, Power.RUNNING, None, ""),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER, Power.PAUSED, None, ""),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP, Power.RUNNING, None, ""),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION, Power.PAUSED, None, "migration"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_POSTCOPY, Power.PAUSED, None, "migration"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SAVE, Power.PAUSED, None, "save"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_DUMP, Power.PAUSED, None, "dump"),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT, Power.PAUSED, None, "snapshot"),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED, Power.OFF, HaltCause.MIGRATED, ""),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_SAVED, Power.OFF, HaltCause.SAVED, ""),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, Power.OFF, None, ""),
    (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT, Power.OFF, HaltCause.UNKNOWN, ""),
    (libvirt.VIR_DOMAIN_CRASHED, 0, Power.OFF, HaltCause.CRASHED, ""),
]
XML = """
<domain id='1'><devices>
  <disk type='file' device='cdrom'><source file='/d/seed'/><target dev='sda'/></disk>
  <disk type='file' device='disk'>
    <driver name='qemu' type='qcow2'/><source file='/d/hda.s'/>
    <backingStore type='file'><format type='qcow2'/><source file='/d/hda.qcow2'/>
      <backingStore type='file'><format type='raw'/><source file='/i/ab'/><backingStore/></backingStore>
    </backingStore>
    <target dev='vda'/>
  </disk>
  <disk type='block' device='disk'><driver type='raw'/><source dev='/dev/sdb'/><target dev='vdb'/></disk>
  <disk type='network' device='disk'><source protocol='nbd' name='x'/><target dev='vdc'/></disk>
</devices></domain>
"""


def domain(xml=XML, control=0, operation=0, *, saved=False):
    def fail():
        raise libvirt.libvirtError("it went off")

    return SimpleNamespace(
        name=lambda: "a",
        XMLDesc=lambda: xml,
        controlInfo=lambda: [control, 0, 0],
        jobStats=fail if operation is None else lambda: {"operation": operation},
        hasManagedSaveImage=lambda: saved,
    )


@pytest.mark.parametrize(("state", "reason", "power", "cause", "job"), STATES)
def test_state_and_reason_have_a_meaning(state, reason, power, cause, job):
    observed = plain(state, reason, "a")
    assert (observed.power, observed.cause, observed.job) == (power, cause, job)


def test_disks_are_named_with_their_layers():
    observed = kvm_state.detailed(domain(), libvirt.VIR_DOMAIN_RUNNING, 1)
    assert observed.disks == {
        "hda": (Layer("/d/hda.s"), Layer("/d/hda.qcow2"), Layer("/i/ab", "raw")),
        "hdb": (Layer("block /dev/sdb", "raw"),),
    }


@pytest.mark.parametrize(
    ("given", "job"),
    [
        ({"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_BACKUP}, "backup"),
        ({"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT}, "migration"),
        ({"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_START}, ""),
        ({"operation": None}, ""),
        ({"operation": libvirt.VIR_DOMAIN_JOB_OPERATION_DUMP, "control": libvirt.VIR_DOMAIN_CONTROL_OCCUPIED}, ""),
        ({"xml": XML.replace("<target dev='vda'/>", "<mirror type='file'/><target dev='vda'/>")}, "block job"),
    ],
)
def test_job_of_somebody_else_is_named(given, job):
    assert kvm_state.detailed(domain(**given), libvirt.VIR_DOMAIN_RUNNING, 1).job == job


@pytest.mark.parametrize("runs", [True, False])
def test_disks_of_another_state_do_not_count(runs):
    """It went off, or on, between the two calls of libvirt: its definition may name other disks."""
    xml = XML if runs else XML.replace(" id='1'", "")
    for state, is_on in ((libvirt.VIR_DOMAIN_RUNNING, True), (libvirt.VIR_DOMAIN_SHUTOFF, False)):
        assert bool(kvm_state.detailed(domain(xml), state, 1).disks) is (runs is is_on)


@pytest.mark.parametrize("saved", [True, False])
def test_saved_memory_counts_while_it_is_off(saved):
    observed = kvm_state.detailed(domain(saved=saved), libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN)
    assert (observed.saved_memory, observed.job) == (saved, "")
