"""Domain XML for libvirt's qemu driver: a pure function, tested with golden files and libvirt's own schema."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

from worker_service.hypervisor.base import DiskSource, DomainSpec, parse_network

NAMESPACE: Final = "urn:saltern:domain:1"
AGENT_PORT: Final = "org.saltern.agent.0"
GUEST_AGENT_PORT: Final = "org.qemu.guest_agent.0"
CD_TARGET: Final = "hdc"
SEED_TARGET: Final = "sda"
TARGETS: Final = {"hda": "vda", "hdb": "vdb"}
"""Disk -> its device in the guest."""

ET.register_namespace("saltern", NAMESPACE)


def domain_xml(spec: DomainSpec, *, accelerated: bool) -> str:
    """Return the definition of a domain. `accelerated`: with KVM, otherwise with emulation (TCG).

    Raises BadRequest for an invalid network. Source: libvirt's formatdomain.
    """
    domain = ET.Element("domain", type="kvm" if accelerated else "qemu")
    _add(domain, "name", spec.name)
    _add(domain, "uuid", spec.uuid)
    ET.SubElement(_add(domain, "metadata"), f"{{{NAMESPACE}}}vm")
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(spec.cpu_count))
    system = _add(domain, "os")
    _add(system, "type", "hvm", arch="x86_64" if spec.arch == "x86_64" else "i686", machine="pc")
    # A blank disk cannot boot, so the firmware goes on to the CD.
    _add(system, "boot", dev="hd")
    _add(system, "boot", dev="cdrom")
    features = _add(domain, "features")
    _add(features, "acpi")
    _add(features, "apic")
    processor = _add(domain, "cpu", mode="host-passthrough" if accelerated else "maximum")
    if spec.arch != "x86_64":
        # libvirt starts the 32-bit QEMU for it, whose versions differ in what they say of long mode.
        _add(processor, "feature", policy="disable", name="lm")
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    devices = _add(domain, "devices")
    for disk in spec.disks:
        _add_disk(devices, disk)
    _add_cd(devices, spec.cd)
    if spec.seed is not None:
        # SCSI and not IDE: the kernels of many cloud images have virtio drivers only.
        _add(devices, "controller", type="scsi", index="0", model="virtio-scsi")
        devices.append(seed_element(spec.seed))
    _add_network(devices, spec)
    _add_serial(devices, spec.console_log)
    channel = _add(devices, "channel", type="file")
    _add(channel, "source", path=str(spec.agent_log), append="on")
    _add(channel, "target", type="virtio", name=AGENT_PORT)
    if spec.guest_agent:
        # The host's side is a socket whose path libvirt chooses.
        channel = _add(devices, "channel", type="unix")
        _add(channel, "target", type="virtio", name=GUEST_AGENT_PORT)
    _add_console(devices, spec.console_socket)
    _add(_add(devices, "video"), "model", type="vga")
    _add(devices, "input", type="tablet", bus="usb")
    _add(_add(devices, "rng", model="virtio"), "backend", "/dev/urandom", model="random")
    _add(devices, "panic", model="isa")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child


def _add_disk(devices: ET.Element, disk: DiskSource) -> None:
    """Add a disk with the whole chain down to its empty end, so that libvirt probes no file."""
    top, *below = disk.layers
    element = _add(devices, "disk", type="file", device="disk")
    _add(element, "driver", name="qemu", type=top.format, discard="unmap")
    _add(element, "source", file=top.path)
    inner = element
    for layer in below:
        inner = _add_backing(inner, layer.format)
        _add(inner, "source", file=layer.path)
    if disk.base is not None:
        inner = _add_backing(inner, disk.base_format)
        _add_shared_source(inner, disk.base)
    _add(inner, "backingStore")
    _add(element, "target", dev=TARGETS[disk.disk_name], bus="virtio")


def _add_backing(element: ET.Element, form: str) -> ET.Element:
    backing = _add(element, "backingStore", type="file")
    _add(backing, "format", type=form)
    return backing


def _add_shared_source(element: ET.Element, path: Path) -> None:
    """Add a file of the cache. libvirt leaves it root's: QEMU's group reads it, and no VM can change another's base."""
    _add(_add(element, "source", file=str(path)), "seclabel", model="dac", relabel="no")


def _add_cd(devices: ET.Element, path: Path | None) -> None:
    devices.append(cd_element(path))


def cd_element(path: Path | None) -> ET.Element:
    """Return the CD drive, with a CD or empty. Every domain has one, so that a CD can be inserted later."""
    return _drive(path, CD_TARGET, "ide", shared=True)


def seed_element(path: Path | None) -> ET.Element:
    """Return the drive of the seed, or the empty drive once the guest has read it."""
    return _drive(path, SEED_TARGET, "scsi")


def _drive(path: Path | None, target: str, bus: str, *, shared: bool = False) -> ET.Element:
    element = ET.Element("disk", type="file", device="cdrom")
    _add(element, "driver", name="qemu", type="raw")
    if path is not None and shared:
        _add_shared_source(element, path)
    elif path is not None:
        _add(element, "source", file=str(path))
    _add(element, "target", dev=target, bus=bus)
    _add(element, "readonly")
    return element


def _add_network(devices: ET.Element, spec: DomainSpec) -> None:
    kind, name = parse_network(spec.network)
    if kind == "none":
        return
    source: Mapping[str, str] = {"user": {}, "network": {"network": name}, "bridge": {"bridge": name}}[kind]
    interface = _add(devices, "interface", type=kind)
    _add(interface, "mac", address=spec.mac)
    if source:
        _add(interface, "source", **source)
    _add(interface, "model", type="virtio")


def _add_console(devices: ET.Element, socket: Path | None) -> None:
    """Add VNC on a unix socket, so that no TCP port is opened. `ignore`: a viewer cannot disconnect another one."""
    graphics = _add(devices, "graphics", type="vnc", sharePolicy="ignore")
    # Without a path (it would be too long), libvirt chooses one that only QEMU and root can reach.
    _add(graphics, "listen", type="socket", **({"socket": str(socket)} if socket else {}))


def _add_serial(devices: ET.Element, log: Path) -> None:
    """Add a terminal for `virsh console`, with a log file of its output."""
    serial = _add(devices, "serial", type="pty")
    _add(serial, "log", file=str(log), append="on")
    _add(serial, "target", port="0")
