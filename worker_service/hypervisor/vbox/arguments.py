"""The commands of VBoxManage that define a machine, as a pure function of its specification."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker_service.hypervisor.base import DomainSpec, parse_network

DRIVES: Final = "drives"
"""The controller of all disks and discs. Each command of VBoxManage takes its time, so there is one. It is of the kind
IDE: the firmware boots from it, and every guest has a driver; cloud kernels have none for the other kinds."""
PLACES: Final = {"hda": (0, 0), "hdb": (0, 1)}
"""Disk -> its port and device."""
CD: Final = (1, 0)
SEED: Final = (1, 1)
"""The places of the two drives for discs."""
EMPTY: Final = "emptydrive"
NO_DISC: Final = frozenset({"none", EMPTY})
"""What `showvminfo` says of a drive without a disc."""
FOLDER: Final = "vbox"
"""The folder in a VM's own, for VirtualBox's settings, its log and what the serial ports write."""
_NICS: Final = {
    "none": ("none",),
    "user": ("nat", "--nat-localhostreachable1", "off"),
    "network": ("natnetwork", "--nat-network1"),
    "bridge": ("bridged", "--bridge-adapter1"),
}


def folder_of(spec: DomainSpec) -> Path:
    """Return VirtualBox's folder in the VM's."""
    return spec.console_log.parent / FOLDER


def serial_log(log: Path) -> Path:
    """Return the file to which VirtualBox writes what belongs into a log: it empties that file at each start."""
    return log.parent / FOLDER / log.name


def define(spec: DomainSpec, bases: dict[str, Path]) -> Iterator[tuple[str, ...]]:
    """Yield the commands that make a machine. `bases`: what a disk is on, in VirtualBox's format.

    VirtualBox looks at a base before it gets the disk on it, because it opens no disk whose base it does not know. The
    machine then keeps both in its own registry of media, which ends with it. A base that were attached itself would get
    a second disk on it.
    """
    uuid, folder = spec.uuid, spec.console_log.parent
    wide = spec.arch == "x86_64"
    yield (
        *("createvm", "--name", spec.name, "--uuid", uuid, "--ostype", "Other_64" if wide else "Other"),
        *("--basefolder", str(folder_of(spec)), "--register"),
    )
    yield (
        *("modifyvm", uuid, "--memory", str(spec.memory_mib), "--cpus", str(spec.cpu_count)),
        *("--long-mode", "on" if wide else "off", "--x86-pae", "on", "--ioapic", "on", "--acpi", "on"),
        *("--firmware", "bios", "--rtc-use-utc", "on", "--snapshot-folder", str(folder)),
        *("--boot1", "disk", "--boot2", "dvd", "--boot3", "none", "--boot4", "none"),
        *("--graphicscontroller", "vmsvga", "--vram", "16", "--audio-driver", "none", "--mouse", "ps2"),
        *("--uart1", "0x3F8", "4", "--uart-mode1", "file", str(serial_log(spec.console_log))),
        *("--uart2", "0x2F8", "3", "--uart-mode2", "file", str(serial_log(spec.agent_log))),
        *("--nic1", *_nic(spec.network), "--nic-type1", "virtio", "--mac-address1", spec.mac.replace(":", "").upper()),
    )
    yield ("storagectl", uuid, "--name", DRIVES, "--add", "ide", "--controller", "PIIX4")
    for disk in spec.disks:
        below = [str(bases[disk.disk_name])] if disk.disk_name in bases else []
        for path in (*below, *(layer.path for layer in reversed(disk.layers[1:]))):
            yield ("showmediuminfo", "disk", path)
        yield (*_at(uuid, PLACES[disk.disk_name]), "--type", "hdd", "--medium", disk.layers[0].path)
    yield drive(uuid, CD, disc_name(spec.console_log.parent / FOLDER, spec.cd) if spec.cd else None)
    if spec.seed is not None:
        yield drive(uuid, SEED, spec.seed)


def disc_name(folder: Path, disc: Path) -> Path:
    """Return a name for a disc by which VirtualBox believes that it is one."""
    return folder / f"{disc.name}.iso"


def drive(uuid: str, place: tuple[int, int], disc: Path | None) -> tuple[str, ...]:
    """Return the command that puts a disc into a drive, or leaves it empty."""
    medium = EMPTY if disc is None else str(disc)
    forced = ("--forceunmount",) if disc is None else ()
    return (*_at(uuid, place), "--type", "dvddrive", "--medium", medium, *forced)


def medium_key(place: tuple[int, int]) -> str:
    """Return the name under which `showvminfo` says what is in a place."""
    port, device = place
    return f"{DRIVES}-{port}-{device}"


def _at(uuid: str, place: tuple[int, int]) -> tuple[str, ...]:
    port, device = map(str, place)
    return ("storageattach", uuid, "--storagectl", DRIVES, "--port", port, "--device", device)


def _nic(network: str) -> tuple[str, ...]:
    kind, name = parse_network(network)
    return (*_NICS[kind], *([name] if name else []))
