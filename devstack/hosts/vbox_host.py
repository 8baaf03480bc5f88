"""The start of a VirtualBox host: QEMU's command line, and a host for tests.

It has one processor: with two that QEMU emulates, its kernel died, and guests jumped to where they have no code. Its
kernel trusts the clock of the processor, which it would find slow beside a busy machine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from devstack.hosts.code import code_disks
from devstack.hosts.machine import Image, Machine, linux_words
from devstack.hosts.vbox import build_vbox
from devstack.layout import REPO

CACHE: Final = REPO / "var/cache/hosts"


@contextmanager
def vbox_host(
    folder: Path, *, cache: Path = CACHE, ports: Mapping[int, int] | None = None, processors: int = 1
) -> Iterator[Machine]:
    """Start a VirtualBox host with the files of its run in `folder`, and stop it at the end. `ports` as of `xen_host`.

    Raises Trouble.
    """
    with Machine(vbox_image(build_vbox(cache), code_disks(cache), processors=processors), folder, ports=ports) as host:
        yield host


def vbox_image(
    folder: Path, disks: Mapping[Path, Path], *, processors: int = 1, memory_mib: int = 3072, systemd: bool = False
) -> Image:
    """Return how QEMU starts the image that `build_vbox` has made. `disks` and `systemd` as of `xen_image`.

    The processor is an old one: with the extensions of `max`, programs in a Linux guest crash.
    """
    linux = (
        "console=ttyS0 mitigations=off audit=0 nokaslr loglevel=4 random.trust_cpu=on kvm.enable_virt_at_load=0 "
        f"tsc=reliable net.ifnames=0 {linux_words(disks, systemd=systemd)}"
    )
    return Image(
        folder,
        (
            *("-machine", "q35", "-cpu", "phenom,+svm,-rdtscp"),
            *("-smp", str(processors), "-m", str(memory_mib)),
            *("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.gz"), "-append", linux),
        ),
        tuple(disks),
    )
