"""Which kind of guest a Xen host runs: by the setting `xen_guest`, and by what the host can do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal
from xml.etree import ElementTree as ET

from worker_service.contract import Capabilities
from worker_service.core.errors import HypervisorError
from worker_service.hypervisor.xen.xml import Guest

_OS_TYPES: Final[Mapping[str, Guest]] = {"hvm": "hvm", "xenpvh": "pvh", "xen": "pv", "linux": "pv"}
_ORDER: Final[tuple[Guest, ...]] = ("hvm", "pvh", "pv")
_ARCHES: Final = {"x86_64": "x86_64", "i686": "i386"}
_HVM: Final = Capabilities(
    networks=("none", "network", "bridge"),
    agent_channel="serial",
    guest_agent=False,
    statistics=False,
    screenshot=False,
)
_WITHOUT_FIRMWARE: Final = Capabilities(
    networks=("none", "network", "bridge"),
    firmware=("grub",),
    console="",
    cd=False,  # QEMU attaches no read-only disk of Xen, and a CD is shared
    cd_change=False,
    agent_channel="",
    guest_agent=False,
    statistics=False,
    screenshot=False,
    console_log=False,
)
OFFERS: Final[Mapping[Guest, Capabilities]] = {"hvm": _HVM, "pvh": _WITHOUT_FIRMWARE, "pv": _WITHOUT_FIRMWARE}
"""What a VM gets by the kind of guest. Without firmware, GRUB for Xen starts the system of the disk."""


def kinds_in(capabilities: str) -> Mapping[Guest, tuple[str, ...]]:
    """Return the kinds of guests in libvirt's XML of capabilities, each with its arches; the preferred one first."""
    found: dict[Guest, list[str]] = {}
    for guest in ET.fromstring(capabilities).iterfind("guest"):  # noqa: S314 - the XML is libvirtd's own
        kind = _OS_TYPES.get(guest.findtext("os_type", ""))
        arch = guest.find("arch")
        name = _ARCHES.get(arch.get("name", "") if arch is not None else "")
        if kind and name and name not in found.setdefault(kind, []):
            found[kind].append(name)
    return {kind: tuple(sorted(found[kind], reverse=True)) for kind in _ORDER if found.get(kind)}


def chosen(
    setting: Guest | Literal["auto"], kinds: Mapping[Guest, tuple[str, ...]]
) -> tuple[Guest, tuple[str, ...], str]:
    """Return the kind of guest, its arches and the reason. Raises HypervisorError if the host has no such kind."""
    if setting == "auto":
        if not kinds:
            raise HypervisorError("Xen offers no kind of guest here. `xl info` shows xen_caps and virt_caps.")
        kind, arches = next(iter(kinds.items()))
        why = "Xen offers it" if kind == "hvm" else "the host has no HVM: its processor or firmware lacks VT-x or AMD-V"
        return kind, arches, f"xen_guest is auto, and {why}."
    if setting not in kinds:
        raise HypervisorError(
            f"Xen offers no {setting} guests here, which xen_guest in the worker's settings asks for. It offers "
            f"{', '.join(kinds) or 'none'}: set xen_guest to one of these, or to auto."
        )
    return setting, kinds[setting], "xen_guest in the worker's settings says so."
