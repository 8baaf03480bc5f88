"""Pillar decides which hypervisors the SLS prepare a host for: packages, units, settings, and what cannot be.

Salt keeps pillar from one call to the next in this process: each test gives all that it depends on.
"""

import subprocess

import pytest

from tests.functional.worker.states.conftest import redirected
from worker_service.core.settings import load as load_worker

LIBVIRTD = "service running libvirtd"
HYPERVISORS = {
    "kvm": ({"qemu-system-x86", "libvirt-daemon-driver-qemu"}, {LIBVIRTD}),
    "xen": (
        {"xen-system-amd64", "libvirt-daemon-driver-xen", "grub-xen-host"},
        {LIBVIRTD, "service enabled saltern-xen-dom0", "service disabled xendomains", "cmd run update-grub"},
    ),
    "vbox": (
        {"virtualbox", "virtualbox-dkms", "linux-headers-amd64"},
        {"service running virtualbox", "service running saltern-vboxsvc", "user present libvirt-qemu"},
    ),
}
"""hypervisor -> packages, and states. The user that libvirt's package makes is made only where that is missing."""


@pytest.mark.parametrize("hypervisors", [["kvm"], ["xen"], ["vbox"], ["kvm", "vbox"]], ids="+".join)
def test_hypervisors_of_the_pillar_make_the_host(salt_call, host, hypervisors):
    host["worker"]["hypervisors"] = hypervisors
    low = salt_call("state.show_low_sls", "worker", pillar={"saltern": host})
    assert all(isinstance(chunk, dict) for chunk in low), low
    packages = next(set(chunk["pkgs"]) for chunk in low if chunk["state"] == "pkg")
    states = {f"{chunk['state']} {chunk['fun']} {chunk['name']}" for chunk in low}
    expected = [HYPERVISORS[name] for name in hypervisors]
    has = (set().union(*(each[0] for each in expected)), set().union(*(each[1] for each in expected)))
    assert packages & set().union(*(each[0] for each in HYPERVISORS.values())) == has[0]
    without = {"user present libvirt-qemu"} if LIBVIRTD in has[1] else set()
    assert states & set().union(*(each[1] for each in HYPERVISORS.values())) == has[1] - without
    assert ("service enabled saltern-guest-firewall.service" in states) is ("kvm" in hypervisors)
    known = {chunk["__id__"] for chunk in low}
    named = {name for chunk in low for each in chunk.get("require", []) for name in each.values()}
    assert named - known - {"saltern-worker-api_unit"} <= {chunk["name"] for chunk in low}


@pytest.mark.parametrize(
    ("hypervisors", "why"),
    [
        (["kvm", "vbox"], "apt knows no package virtualbox: Debian has it in contrib of sid alone."),
        (["hyperv"], "saltern:worker:hypervisors is [hyperv]: name one or more of kvm, vbox, xen."),
        ([], "saltern:worker:hypervisors is []: name one or more of kvm, vbox, xen."),
    ],
)
def test_hypervisor_that_cannot_be_changes_nothing(apply, host, hypervisors, why, tmp_path):
    host["worker"]["hypervisors"] = hypervisors
    rets = apply("worker", host)
    (first, *others) = sorted(rets.values(), key=lambda ret: ret["__run_num__"])
    assert (first["__id__"], first["result"]) == ("saltern_worker_hypervisors", False)
    assert first["name"].startswith(why)
    assert others == []
    assert list(tmp_path.iterdir()) == []


def test_dry_run_of_a_xen_host_finds_every_requisite(apply, host):
    host["worker"]["hypervisors"] = ["kvm", "xen"]
    rets = apply("worker", host, test=True)
    assert {name: ret["comment"] for name, ret in rets.items() if ret["result"] is False} == {}


def test_xen_host_keeps_memory_for_itself(apply, host, tmp_path):
    host["worker"] |= {"hypervisors": ["xen"], "xen": {"dom0_mem_mib": 1536}}
    assert all(ret["result"] for ret in apply("worker.config", host).values())
    assert load_worker(tmp_path / "etc/worker.toml").hypervisors == ("xen",)
    command = f'GRUB_CMDLINE_XEN_DEFAULT=quiet; . {tmp_path}/grub/saltern.cfg; echo "$GRUB_CMDLINE_XEN_DEFAULT"'
    done = subprocess.run(["sh", "-ec", command], capture_output=True, text=True, check=True)
    assert done.stdout == "quiet dom0_mem=1536M,max:1536M\n"


def test_setting_of_the_hypervisors_is_only_written_if_needed(apply, host, tmp_path):
    """A package of version 0.2 does not know it."""
    assert all(ret["result"] for ret in apply("worker.config", host).values())
    assert "hypervisors" not in (tmp_path / "etc/worker.toml").read_text()


@pytest.fixture(scope="module")
def other_units(apply, tmp_path_factory):
    """The unit files of a host with all hypervisors."""
    folder = tmp_path_factory.mktemp("other")
    pillar = redirected(folder)
    pillar["worker"]["hypervisors"] = ["kvm", "xen", "vbox"]
    assert all(ret["result"] for ret in apply("worker.config", pillar).values())
    return folder / "units"


def test_systemd_understands_the_units_of_other_hypervisors(other_units):
    """Only the programs of the hypervisors are missing here."""
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", *map(str, sorted(other_units.iterdir()))],
        capture_output=True,
        text=True,
        check=False,
    )
    lines = [line for line in done.stderr.splitlines() if str(other_units) in line or "saltern" in line]
    assert [line for line in lines if "is not executable: No such file or directory" not in line] == []


@pytest.mark.parametrize(
    ("name", "most"), [("saltern-xen-dom0", 6.5), ("saltern-vboxsvc", 9.0), ("saltern-worker-api", 4.0)]
)
def test_units_of_other_hypervisors_expose_no_more(other_units, name, most):
    bound = f"--threshold={most * 10:.0f}"
    command = [
        "systemd-analyze",
        "security",
        "--offline=true",
        "--no-pager",
        bound,
        str(other_units / f"{name}.service"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr


def test_stop_of_vboxsvc_leaves_its_vms(other_units):
    text = (other_units / "saltern-vboxsvc.service").read_text()
    assert "KillMode=process\n" in text
    assert (
        "After=network-online.target libvirtd.service saltern-vboxsvc.service\n"
        in (other_units / "saltern-worker-api.service").read_text()
    )
