"""Domain XML: golden files, and libvirt's own schema."""

import subprocess
from pathlib import Path

import pytest

from worker_service.core.errors import BadRequest
from worker_service.hypervisor.base import DiskSource, DomainSpec, parse_network
from worker_service.hypervisor.kvm_xml import domain_xml
from worker_service.images.overlay import Layer

GOLDEN = Path(__file__).parent / "golden"
FOLDER = Path("/var/lib/saltern/vms/u")
BASES = Path("/var/lib/saltern/images/sha256")


HDA = (Layer(f"{FOLDER}/hda.qcow2"),)


def spec(**changes):
    full = {
        "uuid": "6d6c7f0e-0000-4000-8000-000000000000",
        "name": "web01",
        "cpu_count": 2,
        "memory_mib": 1024,
        "arch": "x86_64",
        "disks": (DiskSource("hda", HDA, BASES / "aa", "qcow2"),),
        "cd": None,
        "console_log": FOLDER / "console.log",
        "agent_log": FOLDER / "agent.log",
        "network": "user",
        "mac": "52:54:00:44:dc:5c",
        "console_socket": FOLDER / "screen/vnc",
    }
    return DomainSpec(**{**full, **changes})


CASES = {
    "tcg-one-disk": (spec(), False),
    "kvm-two-disks-cd": (
        spec(
            disks=(
                DiskSource("hda", HDA, BASES / "aa", "raw"),
                DiskSource("hdb", (Layer(f"{FOLDER}/hdb.qcow2"),)),
            ),
            cd=BASES / "cc",
            network="bridge=br0",
        ),
        True,
    ),
    "tcg-i386-no-network": (spec(arch="i386", network="none"), False),
    "tcg-seed-guest-agent": (spec(seed=FOLDER / "seed.iso", guest_agent=True), False),
    "tcg-moved-disks": (
        spec(
            disks=(
                DiskSource("hda", (Layer(f"{FOLDER}/hda.s"), *HDA), BASES / "aa", "raw"),
                DiskSource("hdb", (Layer("/srv/copy.img", "raw"),)),
            )
        ),
        False,
    ),
    "tcg-libvirt-network": (spec(network="network=default", console_socket=None), False),
}


@pytest.mark.parametrize("case", CASES)
def test_domain_xml_equals_the_golden_file(case, request):
    spec, accelerated = CASES[case]
    xml = domain_xml(spec, accelerated=accelerated)
    path = GOLDEN / f"{case}.xml"
    if request.config.getoption("--regenerate"):
        path.write_text(xml)
    assert xml == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_domain_xml_fits_libvirts_schema(case):
    done = subprocess.run(
        ["virt-xml-validate", str(GOLDEN / f"{case}.xml"), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_golden_file_has_a_case():
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(CASES)


def test_text_cannot_become_markup():
    xml = domain_xml(spec(name="a</name><devices>&x;"), accelerated=False)
    assert "a&lt;/name&gt;&lt;devices&gt;&amp;x;" in xml


@pytest.mark.parametrize("network", ["", "tap", "user=x", "network", "bridge=", "bridge"])
def test_networks_that_are_none(network):
    with pytest.raises(BadRequest, match="network"):
        parse_network(network)
