"""What a domain of libvirt's libxl driver is, behind what libvirt says."""

from types import SimpleNamespace

import libvirt
import pytest

from worker_service.contract import HaltCause
from worker_service.hypervisor.base import Power
from worker_service.hypervisor.xen import state
from worker_service.images.overlay import Layer

RUNNING, OFF = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_SHUTOFF
BY_GUEST = [OFF, libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN]
XML = """
<domain {}><devices>
  <disk type='file' device='cdrom'><source file='/d/empty'/><target dev='hdc'/></disk>
  <disk type='file' device='disk'><driver type='qcow2'/><source file='/d/hda.qcow2'/><target dev='{}'/></disk>
</devices></domain>
"""


class Domain(SimpleNamespace):
    """A domain whose states come one after another; the job waits for the last."""

    def __init__(self, *states, active=False, target="hda", job_fails=False):
        super().__init__(states=list(states), active=active, target=target, job_fails=job_fails)

    def state(self):
        return self.states.pop(0) if len(self.states) > 1 else self.states[0]

    def autostart(self):
        return 0

    def setAutostart(self, _value):  # noqa: N802 - libvirt's
        if self.job_fails:
            raise libvirt.libvirtError("cannot acquire state change lock")

    def isActive(self):  # noqa: N802
        return self.active

    def name(self):
        return "a"

    def ID(self):  # noqa: N802
        return 5 if self.active else -1

    def XMLDesc(self):  # noqa: N802
        return XML.format("id='5'" if self.active else "", self.target)

    def hasManagedSaveImage(self):  # noqa: N802
        return 0


def observed(domain, *, dead=False):
    return state.detailed(domain, lambda _id: dead)


@pytest.mark.parametrize(
    ("domain", "power", "cause"),
    [
        (Domain([RUNNING, 1], active=True), Power.RUNNING, None),
        (Domain([OFF, 0]), Power.OFF, None),
        (Domain([OFF, libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED]), Power.OFF, HaltCause.KILLED),
        (Domain(BY_GUEST, BY_GUEST), Power.OFF, HaltCause.GUEST),
        # It reboots: the next libxl domain has begun once libvirt's job is over.
        (Domain(BY_GUEST, [RUNNING, 1], active=True), Power.RUNNING, None),
        # Its end is not over: QEMU may still write.
        (Domain(BY_GUEST, BY_GUEST, active=True, job_fails=True), Power.RUNNING, None),
        (Domain(BY_GUEST, BY_GUEST, job_fails=True), Power.OFF, HaltCause.GUEST),
    ],
)
def test_reboot_is_no_end(domain, power, cause):
    found = observed(domain)
    assert (found.power, found.cause) == (power, cause)


def test_domain_without_its_qemu_has_crashed():
    found = observed(Domain([RUNNING, 1], active=True), dead=True)
    assert (found.power, found.cause, found.name) == (Power.OFF, HaltCause.CRASHED, "a")


@pytest.mark.parametrize("target", ["hda", "xvda"])
def test_disks_are_named_on_both_buses(target):
    found = observed(Domain([RUNNING, 1], active=True, target=target))
    assert found.disks == {"hda": (Layer("/d/hda.qcow2"),)}


def test_disks_of_another_state_do_not_count():
    assert observed(Domain([RUNNING, 1])).disks == {}


LIBVIRT, QEMU = "/run/libvirt/libvirt-sock", "/var/run/xen/qmp-libxl-5"


@pytest.mark.parametrize(
    ("left", "sockets", "dead"),
    [
        (False, [LIBVIRT], False),  # another toolstack, or a PV guest without disks
        (True, [LIBVIRT, QEMU], False),
        (True, [LIBVIRT, f"{QEMU}5"], True),
        (True, [f"{QEMU}5"], False),  # another network namespace
        (True, None, False),
    ],
)
def test_qemu_that_died_leaves_its_socket(tmp_path, left, sockets, dead):
    if left:
        (tmp_path / "qmp-libxl-5").touch()
    if sockets is not None:
        (tmp_path / "unix").write_text("".join(f"0: 2 0 0 1 1 9 {path}\n" for path in sockets))
    assert state.qemu_is_dead(5, tmp_path, tmp_path / "unix") is dead
