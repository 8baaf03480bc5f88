"""What libvirt, libxl and QEMU say about a failure in dom0, as sentences with what to do."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final

LIBXL_LOG: Final = Path("/var/log/libvirt/libxl/libxl-driver.log")
XEN_LOGS: Final = Path("/var/log/xen")
OLDEST_XEN: Final = 4_014_000
OLDEST_LIBVIRT: Final = 6_007_000
_TAIL_BYTES: Final = 8 << 10
_QEMU: Final = re.compile(r"^(?:xen-)?qemu-system-\w+: (?!terminating on signal)(.+)$", re.MULTILINE)
_LIBXL: Final = re.compile(r"(?:libxl: \S+:|xc:) (?:Domain \d+:)?(.+)$", re.MULTILINE)
_CONSEQUENCES: Final = (
    *("cannot (re-)build domain", "cannot make domain", "did not start", "spawn failed", "startup configs failed"),
    *(
        "QMP socket",
        "QMP connection",
        "already exited",
        "exited with error status",
        "unable to add",
        "unable to remove",
    ),
)
"""What libxl says of each failure, after the line that has the reason."""
_ANSI: Final = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_NOT_PRINTABLE: Final = re.compile(r"[^\n\x20-\x7e]")
_LINES: Final = 6

_NOT_ON_XEN: Final = (
    "This host does not run on Xen, or not as its dom0 ({text}). Boot it with the hypervisor: on Debian install "
    "xen-system-amd64 and choose the Xen entry of the boot menu. `xl info` must answer."
)
_NO_DRIVER: Final = (
    "libvirt has no driver for Xen ({text}). Install it (Debian: libvirt-daemon-driver-xen) and restart libvirtd."
)
_ADVICE: Final = {
    "state driver is not active": _NOT_ON_XEN,
    "no connection driver available": _NO_DRIVER,
    "failed to initialize libxenlight": _NOT_ON_XEN,
}


def of_libvirt(text: str) -> str:
    """Return what a message of libvirt means for the whole driver, or an empty string."""
    return next((advice.format(text=text) for part, advice in _ADVICE.items() if part in text.lower()), "")


def of_versions(xen: int, libvirt: int) -> str:
    """Return why these versions are too old, or an empty string. Numbers as virConnectGetVersion has them."""
    old = [
        f"{name} {number // 1_000_000}.{number // 1000 % 1000} (needed: {need // 1_000_000}.{need // 1000 % 1000})"
        for name, number, need in (("Xen", xen, OLDEST_XEN), ("libvirt", libvirt, OLDEST_LIBVIRT))
        if number < need
    ]
    return f"Too old for the xen driver: {', '.join(old)}. Upgrade this host." if old else ""


def of_grub(image: Path) -> str:
    """Return why guests without firmware cannot start here, or an empty string."""
    if image.exists():
        return ""
    return (
        f"GRUB for Xen, which starts guests without firmware, is missing: {image}. Install it (Debian: grub-xen-host), "
        "or set xen_grub_folder in the worker's settings."
    )


def too_little_memory(name: str, needs_mib: int, free_mib: int) -> str:
    """Return the message about a guest that does not fit into Xen's free memory."""
    return (
        f"{name!r} needs {needs_mib} MiB of memory, and Xen has {free_mib} MiB free. Halt another VM, or use a smaller "
        "mem_size. dom0's own memory is not given to guests: dom0_mem on Xen's command line sets how much it keeps."
    )


def failed_create(name: str, text: str, libxl_log: Path = LIBXL_LOG, xen_logs: Path = XEN_LOGS) -> str:
    """Return why a domain could not be created. libvirt itself says only that libxl has failed."""
    said = _LIBXL.findall(_tail(libxl_log))[-_LINES:]
    reasons = [line for line in said if not any(part in line for part in _CONSEQUENCES)]
    reason = _last(_QEMU.findall(_tail(xen_logs / f"qemu-dm-{name}.log"))) or _last(reasons) or _last(said)
    return f"Xen could not start {name!r}: {reason or text}. See {xen_logs} and {libxl_log}."


def died(name: str, seconds: float, console: str) -> str:
    """Return the message about a guest that ended in its first seconds."""
    end = f" Its console ended with: {console}" if console else ""
    return (
        f"The guest of {name!r} crashed {seconds:.0f} s after its start: it cannot run as a guest of this kind here. "
        f"Try another xen_guest in the worker's settings, or another image.{end}"
    )


def console_end(name: str, xen_logs: Path = XEN_LOGS) -> str:
    """Return the last lines on the console of a guest without firmware, if xenconsoled logs it; printable ones."""
    text = _ANSI.sub("", _tail(xen_logs / "console" / f"guest-{name}.log")).replace("\r", "\n")
    lines = (line.strip() for line in _NOT_PRINTABLE.sub("", text).splitlines())
    return " / ".join([line for line in lines if line][-_LINES:])


def _last(lines: Iterable[str]) -> str:
    return next((line.strip().rstrip(".") for line in reversed(list(lines)) if line.strip()), "")


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL_BYTES))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""
