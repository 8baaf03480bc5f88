"""The settings file of a machine, as a pure function of its specification. Source: files that VirtualBox 7.2 writes.

VirtualBox takes a machine from such a file in one step. By commands it would be six, of which each locks the machine,
costs its time, and may fail after the ones before it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final
from uuid import UUID, uuid5
from xml.etree import ElementTree as ET

import msgspec

from worker_service.hypervisor.base import DomainSpec, parse_network
from worker_service.hypervisor.vbox.arguments import CD, DRIVES, FOLDER, PLACES, SEED, disc_name, serial_log

_VERSION: Final = "1.19-linux"
"""The version of the format that VirtualBox 7.0 has; later ones read it."""
_DISCS: Final = UUID("0c9de0a4-4f5a-4d0e-9a39-6d1f6f0f3b57")
"""The namespace of the uuids of discs, which have none of their own."""
_BOOTS: Final = ("HardDisk", "DVD", "None", "None")
_PORTS: Final = (("0x3f8", "4"), ("0x2f8", "3"))
"""The addresses and interrupts of the serial ports."""


class Medium(msgspec.Struct, frozen=True):
    """A file of a disk, with the uuid in its header."""

    path: Path
    uuid: UUID


def machine_xml(spec: DomainSpec, chains: Mapping[str, Sequence[Medium]]) -> str:
    """Return the settings file. `chains`: the files of each disk, the shared base first.

    VirtualBox opens no file whose base it does not know, so each machine names all of them in a registry of its own,
    which ends with it.
    """
    document = ET.Element("VirtualBox", xmlns="http://www.virtualbox.org/", version=_VERSION)
    wide = spec.arch == "x86_64"
    machine = _add(
        document,
        "Machine",
        uuid=_braced(spec.uuid),
        name=spec.name,
        OSType="Other_64" if wide else "Other",
        snapshotFolder=str(spec.console_log.parent),
    )
    discs = {
        place: path
        for place, path in (
            (CD, disc_name(spec.console_log.parent / FOLDER, spec.cd) if spec.cd else None),
            (SEED, spec.seed),
        )
        if path is not None
    }
    _add_media(machine, chains, list(discs.values()))
    hardware = _add(machine, "Hardware")
    cpu = _add(hardware, "CPU", count=str(spec.cpu_count))
    _add(cpu, "PAE", enabled="true")
    _add(cpu, "LongMode", enabled="true" if wide else "false")
    _add(hardware, "Memory", RAMSize=str(spec.memory_mib))
    boot = _add(hardware, "Boot")
    for position, device in enumerate(_BOOTS, start=1):
        _add(boot, "Order", position=str(position), device=device)
    _add(hardware, "Display", controller="VMSVGA", VRAMSize="16")
    bios = _add(hardware, "BIOS")
    _add(bios, "ACPI", enabled="true")
    _add(bios, "IOAPIC", enabled="true")
    _add(bios, "Logo", fadeIn="false", fadeOut="false", displayTime="0")  # else each boot takes seconds longer
    _add(bios, "BootMenu", mode="Disabled")
    _add(bios, "SmbiosUuidLittleEndian", enabled="true")
    _add(bios, "AutoSerialNumGen", enabled="true")
    _add_network(hardware, spec)
    ports = _add(hardware, "UART")
    for slot, ((address, interrupt), log) in enumerate(zip(_PORTS, (spec.console_log, spec.agent_log), strict=True)):
        used = {"slot": str(slot), "enabled": "true", "IOBase": address, "IRQ": interrupt}
        _add(ports, "Port", **used, path=str(serial_log(log)), hostMode="RawFile")
    _add(hardware, "AudioAdapter", driver="Null", enabled="false")
    _add(hardware, "RTC", localOrUTC="UTC")
    drives = _add(_add(hardware, "StorageControllers"), "StorageController", name=DRIVES, type="PIIX4")
    drives.attrib.update(PortCount="2", useHostIOCache="true", Bootable="true")
    for disk in spec.disks:
        _add_device(drives, PLACES[disk.disk_name], chains[disk.disk_name][-1].uuid, type="HardDisk")
    for place in (CD, SEED):
        if place in discs or place == CD:
            uuid = _uuid_of_disc(discs[place]) if place in discs else None
            _add_device(drives, place, uuid, passthrough="false", type="DVD")
    ET.indent(document)
    return f'<?xml version="1.0"?>\n{ET.tostring(document, encoding="unicode")}\n'


def _add_media(machine: ET.Element, chains: Mapping[str, Sequence[Medium]], discs: Sequence[Path]) -> None:
    registry = _add(machine, "MediaRegistry")
    disks = _add(registry, "HardDisks")
    known: dict[UUID, ET.Element] = {}
    for chain in chains.values():
        parent = disks
        for medium in chain:
            if medium.uuid not in known:
                known[medium.uuid] = _add_medium(parent, "HardDisk", medium.uuid, medium.path)
                known[medium.uuid].set("format", "VDI")
                if parent is disks:
                    known[medium.uuid].set("type", "Normal")
            parent = known[medium.uuid]
    images = _add(registry, "DVDImages")
    for disc in discs:
        _add_medium(images, "Image", _uuid_of_disc(disc), disc)


def _add_medium(parent: ET.Element, name: str, uuid: UUID, path: Path) -> ET.Element:
    return _add(parent, name, uuid=_braced(uuid), location=str(path))


def _add_device(drives: ET.Element, place: tuple[int, int], uuid: UUID | None, **attributes: str) -> None:
    port, device = map(str, place)
    found = _add(drives, "AttachedDevice", **attributes, hotpluggable="false", port=port, device=device)
    if uuid is not None:
        _add(found, "Image", uuid=_braced(uuid))


def _add_network(hardware: ET.Element, spec: DomainSpec) -> None:
    kind, name = parse_network(spec.network)
    adapter = _add(_add(hardware, "Network"), "Adapter", slot="0", enabled="false" if kind == "none" else "true")
    adapter.attrib.update(MACAddress=spec.mac.replace(":", "").upper(), cable="true", type="virtio")
    if kind == "user":
        _add(adapter, "NAT", **{"localhost-reachable": "false"})
    elif kind == "network":
        _add(adapter, "NATNetwork", name=name)
    elif kind == "bridge":
        _add(adapter, "BridgedInterface", name=name)


def _uuid_of_disc(path: Path) -> UUID:
    return uuid5(_DISCS, str(path))


def _braced(uuid: object) -> str:
    return f"{{{uuid}}}"


def _add(parent: ET.Element, tag: str, /, **attributes: str) -> ET.Element:
    return ET.SubElement(parent, tag, attributes)
