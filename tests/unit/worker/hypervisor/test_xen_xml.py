"""Domain XML for Xen: golden files, and libvirt's own schema."""

import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from worker_service.hypervisor.base import DiskSource, DomainSpec
from worker_service.hypervisor.xen import xml
from worker_service.images.overlay import Layer

GOLDEN = Path(__file__).parent / "golden_xen"
FOLDER = Path("/var/lib/saltern/vms/u")
BASES = Path("/var/lib/saltern/images/sha256")
SCREEN = FOLDER / "screen/vnc"
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
        "network": "none",
        "mac": "52:54:00:44:dc:5c",
        "console_socket": SCREEN,
    }
    return DomainSpec(**{**full, **changes})


def made(guest, screen=SCREEN, **changes):
    return xml.domain_xml(
        spec(**changes), guest, empty_cd=FOLDER.parents[1] / "empty.iso", grub=Path("/usr/lib/grub-xen"), screen=screen
    )


CASES = {
    "hvm-one-disk": ("hvm", {}),
    "hvm-i386-cd-two-disks": (
        "hvm",
        {
            "arch": "i386",
            "cd": BASES / "cc",
            "network": "bridge=br0",
            "disks": (
                DiskSource("hda", (Layer(f"{FOLDER}/hda.s"), *HDA), BASES / "aa", "raw"),
                DiskSource("hdb", (Layer("/srv/copy.img", "raw"),)),
            ),
        },
    ),
    "hvm-seed-network": ("hvm", {"seed": FOLDER / "seed.iso", "network": "network=default"}),
    "pvh-i386-bridge": ("pvh", {"arch": "i386", "network": "bridge=br0"}),
    "pv-seed": ("pv", {"seed": FOLDER / "seed.iso"}),
}


@pytest.mark.parametrize("case", CASES)
def test_domain_xml_equals_the_golden_file(case, request):
    guest, changes = CASES[case]
    path, text = GOLDEN / f"{case}.xml", made(guest, **changes)
    if request.config.getoption("--regenerate"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("case", CASES)
def test_domain_xml_fits_libvirts_schema(case):
    done = subprocess.run(
        ["virt-xml-validate", str(GOLDEN / f"{case}.xml"), "domain"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_golden_file_has_a_case():
    assert {path.stem for path in GOLDEN.glob("*.xml")} == set(CASES)


def test_path_cannot_become_an_option_of_qemu():
    place = Path("/srv/a,share=force/vnc")
    text = made("hvm", console_log=Path("/srv/a,logappend=off"), screen=place)
    assert "/srv/a,,logappend=off," in text
    assert xml.screen_in(ET.fromstring(text)) == place


@pytest.mark.parametrize("guest", ["pvh", "pv"])
def test_guest_without_firmware_has_no_screen(guest):
    assert xml.screen_in(ET.fromstring(made(guest))) is None


def test_drive_without_a_disc_has_no_source():
    assert xml.cd_element(None).find("source") is None
    assert xml.cd_element(Path("/c")).find("source").get("file") == "/c"
