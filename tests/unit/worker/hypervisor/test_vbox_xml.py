"""The settings files of machines of VirtualBox, as golden files, and the places of what they have."""

from pathlib import Path
from uuid import UUID

import pytest

from worker_service.hypervisor.base import DiskSource, DomainSpec
from worker_service.hypervisor.vbox.arguments import CD, SEED, drive, folder_of, medium_key
from worker_service.hypervisor.vbox.machine_xml import Medium, machine_xml
from worker_service.images.overlay import Layer

GOLDEN = Path(__file__).parent / "golden_vbox"
FOLDER = Path("/var/lib/saltern/vms/u")
BASES = Path("/var/lib/saltern/images/sha256")
HDA = (Layer(f"{FOLDER}/hda.vdi", "vdi"),)


def chain(*paths):
    """Return the files of a disk. Each path has a uuid of its own."""
    return [Medium(path, UUID(bytes=path.name.encode().ljust(16, b"-"))) for path in paths]


HDA_CHAIN = {"hda": chain(BASES / "aa.vdi", FOLDER / "hda.vdi")}


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
    }
    return DomainSpec(**{**full, **changes})


CASES = {
    "one-disk": (spec(), HDA_CHAIN),
    "i386-blank-disks-cd-no-network": (
        spec(
            arch="i386",
            disks=(DiskSource("hda", HDA), DiskSource("hdb", (Layer(f"{FOLDER}/hdb.vdi", "vdi"),))),
            cd=BASES / "cc",
            network="none",
        ),
        {"hda": chain(FOLDER / "hda.vdi"), "hdb": chain(FOLDER / "hdb.vdi")},
    ),
    "snapshot-seed-nat-network": (
        spec(
            disks=(DiskSource("hda", (Layer(f"{FOLDER}/{{5}}.vdi", "vdi"), *HDA), BASES / "aa", "raw"),),
            seed=FOLDER / "seed.iso",
            network="network=lab",
        ),
        {"hda": chain(BASES / "aa.vdi", FOLDER / "hda.vdi", FOLDER / "{5}.vdi")},
    ),
    "two-disks-on-one-base-bridge": (
        spec(
            name='a<b&"c',
            disks=(*spec().disks, DiskSource("hdb", (Layer(f"{FOLDER}/hdb.vdi", "vdi"),), BASES / "aa", "qcow2")),
            network="bridge=br0",
        ),
        {**HDA_CHAIN, "hdb": chain(BASES / "aa.vdi", FOLDER / "hdb.vdi")},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_settings_match_the_golden_file(name, request):
    made = machine_xml(*CASES[name])
    golden = GOLDEN / f"{name}.xml"
    if request.config.getoption("--regenerate"):
        golden.write_text(made)
    assert made == golden.read_text()


def test_discs_change_in_their_places():
    assert folder_of(spec()) == FOLDER / "vbox"
    assert medium_key(CD) == "drives-1-0"
    place = ("storageattach", "u", "--storagectl", "drives", "--port", "1", "--device")
    assert drive("u", CD, None) == (*place, "0", "--type", "dvddrive", "--medium", "emptydrive", "--forceunmount")
    assert drive("u", SEED, FOLDER / "seed.iso") == (
        *place,
        "1",
        "--type",
        "dvddrive",
        "--medium",
        f"{FOLDER}/seed.iso",
    )
