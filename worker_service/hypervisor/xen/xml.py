"""Domain XML for libvirt's libxl driver: a pure function, tested with golden files and libvirt's own schema.

Three kinds of guest: HVM boots any disk by its firmware; PVH and PV begin with GRUB for Xen, which reads the menu of
the system on the disk. libvirt passes no second serial port to libxl (9.0 ends by a segmentation fault), opens its log
anew at each boot, and has VNC on TCP only, with a password that Debian's QEMU cannot check. So the serial ports and the
screen of an HVM guest are arguments of QEMU.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal
from xml.etree import ElementTree as ET

from worker_service.hypervisor.base import DiskSource, DomainSpec, parse_network

Guest = Literal["hvm", "pvh", "pv"]

NAMESPACE: Final = "urn:saltern:domain:1"
XEN_NAMESPACE: Final = "http://libvirt.org/schemas/domain/xen/1.0"
CD_TARGET: Final = "hdc"
SEED_TARGET: Final = "xvde"
DEVICES: Final = (("hda", "hda"), ("hdb", "hdb"), ("hda", "xvda"), ("hdb", "xvdb"))
"""(Disk, its device) for both kinds of bus. A guest with Xen's drivers sees hda as xvda."""
_SCREEN: Final = "unix:"
_SHARED: Final = ",share=ignore"
"""A viewer cannot disconnect another one."""
_TYPES: Final = {"hvm": ("hvm", "xenfv"), "pvh": ("xenpvh", "xenpvh"), "pv": ("linux", "xenpv")}
GRUB: Final = {"pvh": "grub-i386-xen_pvh.bin", "pv": "grub-x86_64-xen.bin"}
"""The image that a guest without firmware starts with."""

ET.register_namespace("saltern", NAMESPACE)
ET.register_namespace("xen", XEN_NAMESPACE)


def domain_xml(spec: DomainSpec, guest: Guest, *, empty_cd: Path, grub: Path, screen: Path) -> str:
    """Return the definition of a domain.

    Raises BadRequest for an invalid network. Source: libvirt's formatdomain and libxl's xl.cfg(5).

    Args:
        spec: the domain.
        guest: the kind of guest.
        empty_cd: the disc that is in the drive of an HVM guest without a CD.
        grub: the folder of GRUB's images for Xen.
        screen: the socket for VNC of an HVM guest.
    """
    domain = ET.Element("domain", type="xen")
    _add(domain, "name", spec.name)
    _add(domain, "uuid", spec.uuid)
    ET.SubElement(_add(domain, "metadata"), f"{{{NAMESPACE}}}vm")
    _add(domain, "memory", str(spec.memory_mib), unit="MiB")
    _add(domain, "vcpu", str(spec.cpu_count))
    kind, machine = _TYPES[guest]
    system = _add(domain, "os")
    _add(system, "type", kind, arch="x86_64" if spec.arch == "x86_64" else "i686", machine=machine)
    if guest == "hvm":
        # A blank disk cannot boot, so the firmware goes on to the CD.
        _add(system, "boot", dev="hd")
        _add(system, "boot", dev="cdrom")
    else:
        _add(system, "kernel", str(grub / GRUB[guest]))
    if guest != "pv":
        features = _add(domain, "features")
        for name in ("acpi", "apic", "pae"):
            _add(features, name)
        if spec.arch != "x86_64":  # the arch of the type does not take long mode from the guest
            processor = _add(domain, "cpu", mode="host-passthrough")
            _add(processor, "feature", policy="disable", name="lm")
    _add(domain, "clock", offset="utc")
    _add(domain, "on_poweroff", "destroy")
    _add(domain, "on_reboot", "restart")
    _add(domain, "on_crash", "destroy")
    devices = _add(domain, "devices")
    _add_drives(devices, spec, guest, empty_cd)
    _add_network(devices, spec, guest)
    if guest == "hvm":
        _add(devices, "input", type="tablet", bus="usb")
        _add(_add(devices, "video"), "model", type="vga", vram="16384")
        _add_arguments(domain, spec, screen)
    else:
        console = _add(devices, "console", type="pty")
        _add(console, "target", type="xen", port="0")
    ET.indent(domain)
    return ET.tostring(domain, encoding="unicode") + "\n"


def cd_element(path: Path | None) -> ET.Element:
    """Return the CD drive of an HVM guest, with a disc or empty. One that starts empty cannot be changed later."""
    return _disk(CD_TARGET, path, read_only=True)


def seed_element(path: Path) -> ET.Element:
    """Return the disk of the seed. A guest's Xen drivers find it, which is all that many cloud images have.

    It is writable, because QEMU attaches no read-only disk of Xen ("Block node is read-only"). No other VM reads it.
    """
    return _disk(SEED_TARGET, path)


def screen_in(domain: ET.Element) -> Path | None:
    """Return the socket of the screen in the XML of a domain, or None if it has none."""
    for argument in domain.iterfind(f"./{{{XEN_NAMESPACE}}}commandline/{{{XEN_NAMESPACE}}}arg"):
        value = argument.get("value", "")
        if value.startswith(_SCREEN):
            return Path(value.removeprefix(_SCREEN).removesuffix(_SHARED).replace(",,", ","))
    return None


def _add_drives(devices: ET.Element, spec: DomainSpec, guest: Guest, empty_cd: Path) -> None:
    for disk in spec.disks:
        devices.append(_own_disk(disk, guest))
    if guest == "hvm":
        devices.append(cd_element(spec.cd or empty_cd))
    if spec.seed is not None:
        devices.append(seed_element(spec.seed))


def _own_disk(disk: DiskSource, guest: Guest) -> ET.Element:
    """Return a disk with its whole chain. libxl gets the first file; the others are for readers of the XML."""
    top, *below = ((layer.path, layer.format) for layer in disk.layers)
    if disk.base is not None:
        below.append((str(disk.base), disk.base_format))
    target = disk.disk_name if guest == "hvm" else f"xv{disk.disk_name.removeprefix('h')}"
    return _disk(target, Path(top[0]), form=top[1], below=below)


def _disk(
    target: str,
    path: Path | None,
    *,
    form: str = "raw",
    read_only: bool = False,
    below: Iterable[tuple[str, str]] = (),
) -> ET.Element:
    element = ET.Element("disk", type="file", device="cdrom" if target == CD_TARGET else "disk")
    _add(element, "driver", name="qemu", type=form)
    if path is not None:
        _add(element, "source", file=str(path))
    inner = element
    for file, backing_form in below:
        inner = _add(inner, "backingStore", type="file")
        _add(inner, "format", type=backing_form)
        _add(inner, "source", file=file)
    _add(element, "target", dev=target, bus="xen" if target.startswith("xvd") else "ide")
    if read_only:
        _add(element, "readonly")
    return element


def _add_network(devices: ET.Element, spec: DomainSpec, guest: Guest) -> None:
    kind, name = parse_network(spec.network)
    if kind == "none":
        return
    interface = _add(devices, "interface", type=kind)
    _add(interface, "mac", address=spec.mac)
    _add(interface, "source", **{kind: name})
    if guest == "hvm":  # beside Xen's own card, for guests without its driver
        _add(interface, "model", type="e1000")


def _add_arguments(domain: ET.Element, spec: DomainSpec, screen: Path) -> None:
    """Add two serial ports, whose output is appended to files, and VNC on a unix socket, which opens no TCP port."""
    console, agent, socket = (str(path).replace(",", ",,") for path in (spec.console_log, spec.agent_log, screen))
    arguments = ET.SubElement(domain, f"{{{XEN_NAMESPACE}}}commandline")
    for value in (
        *("-chardev", f"pty,id=console,logfile={console},logappend=on", "-serial", "chardev:console"),
        *("-chardev", f"file,id=agent,path={agent},append=on", "-serial", "chardev:agent"),
        *("-vnc", f"{_SCREEN}{socket}{_SHARED}"),
    ):
        ET.SubElement(arguments, f"{{{XEN_NAMESPACE}}}arg", value=value)


def _add(parent: ET.Element, tag: str, text: str | None = None, **attributes: str) -> ET.Element:
    child = ET.SubElement(parent, tag, attributes)
    child.text = text
    return child
