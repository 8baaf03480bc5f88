"""The commands that define a machine of VirtualBox: golden files, one command a line."""

import shlex
from pathlib import Path

import pytest

from worker_service.hypervisor.base import DiskSource, DomainSpec
from worker_service.hypervisor.vbox.arguments import define
from worker_service.images.overlay import Layer

GOLDEN = Path(__file__).parent / "golden_vbox"
FOLDER = Path("/var/lib/saltern/vms/u")
BASES = Path("/var/lib/saltern/images/sha256")
HDA = (Layer(f"{FOLDER}/hda.vdi", "vdi"),)
BASE = {"hda": BASES / "aa.vdi"}


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
    "one-disk": (spec(), BASE),
    "i386-blank-disk-cd-no-network": (
        spec(
            arch="i386",
            disks=(DiskSource("hda", HDA), DiskSource("hdb", (Layer(f"{FOLDER}/hdb.vdi", "vdi"),))),
            cd=BASES / "cc",
            network="none",
        ),
        {},
    ),
    "snapshot-seed-nat-network": (
        spec(
            disks=(DiskSource("hda", (Layer(f"{FOLDER}/{{5}}.vdi", "vdi"), *HDA), BASES / "aa", "raw"),),
            seed=FOLDER / "seed.iso",
            network="network=lab",
        ),
        BASE,
    ),
    "bridge": (spec(network="bridge=br0"), BASE),
}


@pytest.mark.parametrize("name", CASES)
def test_commands_match_the_golden_file(name, request):
    made = "".join(f"{shlex.join(command)}\n" for command in define(*CASES[name]))
    golden = GOLDEN / f"{name}.txt"
    if request.config.getoption("--regenerate"):
        golden.write_text(made)
    assert made == golden.read_text()
