"""The start of a Xen host: QEMU's command line, and a host for tests.

It has one processor: with two that QEMU emulates, programs in dom0 crash now and then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from devstack.hosts.code import code_disks
from devstack.hosts.machine import Image, Machine, linux_words
from devstack.hosts.xen import build_xen
from devstack.layout import REPO

CACHE: Final = REPO / "var/cache/hosts"


@contextmanager
def xen_host(
    folder: Path, *, cache: Path = CACHE, ports: Mapping[int, int] | None = None, processors: int = 1
) -> Iterator[Machine]:
    """Start a Xen host with the files of its run in `folder`, and stop it at the end.

    `ports` has ports of the host that shall be reached at 127.0.0.1, each with the port here, or 0 for a free one:
    `Machine.ports`. Raises Trouble.
    """
    with Machine(xen_image(build_xen(cache), code_disks(cache), processors=processors), folder, ports=ports) as host:
        yield host


def xen_image(  # noqa: PLR0913
    folder: Path,
    disks: Mapping[Path, Path],
    *,
    processors: int = 1,
    memory_mib: int = 3072,
    dom0_mib: int = 1024,
    systemd: bool = False,
) -> Image:
    """Return how QEMU starts the image that `build_xen` has made. `disks` has further disks and where they are mounted.

    With `systemd` it is a usual Debian, for hosts that the SLS make into workers.
    Without smap and smep dom0 would die at once, and with rdtscp a PVH Linux after some seconds. QEMU emulates the fast
    copies of erms byte by byte.
    Without eager-fpu, programs in dom0 crash beside HVM guests: they get the registers of another one.
    """
    xen = (
        f"console=com1 com1=115200,8n1 dom0_mem={dom0_mib}M,max:{dom0_mib}M spec-ctrl=no,eager-fpu xpti=0 "
        "pv-l1tf=0 cpufreq=none watchdog=0 noreboot loglvl=info"
    )
    linux = (
        "console=hvc0 mitigations=off audit=0 nokaslr loglevel=4 random.trust_cpu=on cryptomgr.notests no_timer_check "
        f"net.ifnames=0 {linux_words(disks, systemd=systemd)}"
    ).replace(",", ",,")  # QEMU ends a module's name at a single comma
    return Image(
        folder,
        (
            *("-machine", "q35", "-cpu", "max,-smap,-smep,-rdtscp,-erms"),
            *("-smp", str(processors), "-m", str(memory_mib)),
            *("-kernel", str(folder / "xen"), "-append", xen),
            *("-initrd", f"{folder / 'vmlinux'} {linux},{folder / 'initrd.gz'}"),
        ),
        tuple(disks),
    )
