"""Regression: a boot that QEMU refused counted as a crash, so the VM was kept instead of failing to start."""

import libvirt
import pytest

from tests.lib.support import a_site, virsh
from worker_service.contract import HaltCause
from worker_service.hypervisor.base import Power
from worker_service.hypervisor.kvm_state import plain


@pytest.mark.parametrize(
    ("reason", "cause"),
    [
        (libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN, None),
        (libvirt.VIR_DOMAIN_SHUTOFF_FAILED, None),
        (libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN, HaltCause.GUEST),
        (libvirt.VIR_DOMAIN_SHUTOFF_CRASHED, HaltCause.CRASHED),
        (libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED, HaltCause.KILLED),
        (libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT, HaltCause.UNKNOWN),
    ],
)
def test_only_a_vm_that_ran_has_a_halt_cause(reason, cause):
    observed = plain(libvirt.VIR_DOMAIN_SHUTOFF, reason, "a")
    assert (observed.power, observed.cause) == (Power.OFF, cause)


@pytest.fixture
def site(libvirt):
    with a_site(bridges=["no-such-br"]) as made:
        yield made


def test_vm_that_cannot_boot_fails_to_start(site, bootchain):
    image = bootchain("unbootable.raw", folder=site.images)
    assert site.start("unbootable", image, network="bridge=no-such-br")["success"]
    reply = site.wait("unbootable", "failed to start", "halted")
    assert reply["status"] == "failed to start", reply
    assert "no-such-br" in reply["message"]
    assert site.leftovers() == set()
    assert "unbootable" not in virsh("list", "--all", "--name").split()
    # It names no folder of this worker, by which the worker's logs are found: QEMU was never started.
    (site.worker.settings.libvirt_log_folder / "unbootable.log").unlink()
