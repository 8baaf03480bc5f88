"""The demo guest: Debian's cloud kernel and a static busybox on a FAT partition that starts through the BIOS.

It has drivers for the devices of QEMU (virtio), of Xen, and of VirtualBox's IDE controller.

The disk, 64 MiB: a boot record, and from 1 MiB on one FAT16 partition with

    vmlinuz, initrd.gz      the guest itself; demo/root and demo/modules.* go into the second
    syslinux.cfg            the kernel's arguments
    boots                   how often the guest has booted, in digits; written and synced before the banner
    packages/NAME           what Saltern's agent has installed, with its version
    saltern.cfg             optional, lines of key=value (also taken as kernel arguments, which win):
                              demo.after=SECONDS                   end the run so long after the banner
                              demo.action=poweroff|reboot|crash    how; default poweroff
                              demo.say=yes                         say on the serial port what is in the drives
                                                                   ("disc: SHA256"), and the address of the guest

It needs no loop device and no root: mtools and syslinux work on the file.
"""

from __future__ import annotations

import re
import struct
import tempfile
from pathlib import Path
from typing import Final

from devstack.console import Trouble, progress
from devstack.guests.cache import locked
from devstack.guests.dmaboot import RECORD_BYTES, write_dma_boot
from devstack.guests.initramfs import Initramfs
from devstack.guests.tools import appearing, convert, run

DISK_BYTES: Final = 64 << 20

_PARTS: Final = Path(__file__).with_name("demo")
_AGENT: Final = Path(__file__).parents[2] / "worker_service" / "guest_agent" / "saltern-agent.sh"
_KERNEL_PACKAGE: Final = "linux-image-cloud-amd64"
_BUSYBOX_PACKAGE: Final = "busybox-static"
_EMPTY_FOLDERS: Final = ("dev", "disk", "proc", "root", "run", "sys", "tmp", "var/lib", "var/log")

_SECTOR: Final = 512
_PARTITION_START: Final = 1 << 20
_FAT16_LBA: Final = 0x0E
_ACTIVE: Final = 0x80
_NO_CHS: Final = b"\xfe\xff\xff"  # no cylinder, head and sector: the BIOS counts in sectors
_VOLUME_SERIAL: Final = "5a17e200"  # fixed, so that it is not random


def build_demo(out: Path, cache: Path) -> None:
    """Write the demo guest's disk as a qcow2 image.

    `cache` keeps the unpacked packages, the initramfs and `build.log`: a second build needs no network, and gets a
    newer kernel only after the folder was removed. Builds that share a cache wait for each other. Raises Trouble with a
    remedy.
    """
    with locked(cache, "demo"):
        cache = cache.resolve()
        log = cache / "build.log"
        log.write_bytes(b"")
        kernel = _kernel(cache, log)
        busybox = _unpacked(_BUSYBOX_PACKAGE, cache, log) / "bin" / "busybox"
        progress("demo guest: packing the initramfs")
        initrd = cache / "initrd.gz"
        with appearing(initrd) as part:
            part.write_bytes(_initramfs(kernel.modules, busybox, log))
        progress("demo guest: writing the disk")
        raw = cache / "demo.raw"
        _write_disk(raw, kernel.image, initrd, log)
        with appearing(out) as part:
            convert(raw, "raw", part, "qcow2", log=log)
        raw.unlink()


def read_demo_boots(image: Path, fmt: str) -> int:
    """Return how often the demo guest on an image of format `fmt` has reached its banner.

    The VM must be off. Raises Trouble when the image cannot be read or is not the demo guest's.
    """
    return int(_read(image, fmt, "boots"))


def read_demo_package(image: Path, fmt: str, name: str) -> str:
    """Return the version of a package installed in the demo guest on an image. Raises Trouble if it is missing.

    The VM must be off.
    """
    return _read(image, fmt, f"packages/{name}").decode().strip()


def _read(image: Path, fmt: str, path: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="saltern-demo-") as folder:
        raw = Path(folder) / "disk"
        convert(image, fmt, raw, "raw")
        return run(["mtype", "-i", _partition(raw), f"::{path}"])


def write_demo_config(image: Path, fmt: str, text: str) -> None:
    """Replace `saltern.cfg` on the demo guest's disk: lines such as `demo.after=10` and `demo.action=crash`.

    The VM must be off. The image is rewritten whole, without a backing file; the format stays. Raises Trouble.
    """
    with tempfile.TemporaryDirectory(prefix="saltern-demo-") as folder:
        raw, config = Path(folder) / "disk", Path(folder) / "saltern.cfg"
        config.write_text(text, "ascii")
        convert(image, fmt, raw, "raw")
        run(["mcopy", "-o", "-i", _partition(raw), config, "::saltern.cfg"])
        with appearing(image) as part:
            convert(raw, "raw", part, fmt)


def demo_boot_files(cache: Path) -> tuple[Path, Path]:
    """Return the kernel and the initramfs of the last build in a cache, to start the guest without its boot loader.

    Raises Trouble if the cache has no build.
    """
    kernel, initrd = cache / _KERNEL_PACKAGE, cache / "initrd.gz"
    if not kernel.exists() or not initrd.exists():
        raise Trouble(f"{cache} holds no demo guest; run: python3 -m devstack.guests.build demo OUT.qcow2")
    return _Kernel(kernel.resolve()).image, initrd


class _Kernel:
    """An unpacked kernel package: the image, and the folder of its modules."""

    def __init__(self, root: Path) -> None:
        images = sorted((root / "boot").glob("vmlinuz-*"))
        if not images:
            raise Trouble(f"{root} holds no kernel; remove the folder and build again")
        self.image = images[-1]
        self.modules = root / "lib" / "modules" / self.image.name.removeprefix("vmlinuz-") / "kernel"


def _kernel(cache: Path, log: Path) -> _Kernel:
    """Return the newest kernel of this Debian release, or the one unpacked earlier."""
    link = cache / _KERNEL_PACKAGE
    if not link.exists():
        # The package of this name is empty: it depends on the present kernel's package, whose name has the version.
        listing = run(["apt-cache", "depends", "--important", _KERNEL_PACKAGE], log=log).decode()
        names = [line.split()[-1] for line in listing.splitlines() if "Depends: linux-image-" in line]
        if not names:
            raise Trouble(f"apt knows no {_KERNEL_PACKAGE}; run apt-get update, then build again; the log is {log}")
        target = _unpacked(names[0], cache, log)
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
    else:
        progress(f"demo guest: {link.resolve().name} is in the cache")
    return _Kernel(link.resolve())


def _unpacked(package: str, cache: Path, log: Path) -> Path:
    """Return a folder with a Debian package's files; download and unpack it if it is missing, but never install it."""
    target = cache / package
    if target.is_dir():
        progress(f"demo guest: {package} is in the cache")
        return target
    progress(f"demo guest: downloading {package}")
    with tempfile.TemporaryDirectory(prefix="download-", dir=cache) as name:
        folder = Path(name)
        folder.chmod(0o755)
        run(["apt-get", "download", package], log=log, cwd=folder)
        archive = next(folder.glob("*.deb"), None)
        if archive is None:
            raise Trouble(f"apt-get downloaded no {package}; run apt-get update, then build again; the log is {log}")
        run(["dpkg-deb", "-x", archive, folder / "root"], log=log)
        (folder / "root").rename(target)
    return target


def _initramfs(modules: Path, busybox: Path, log: Path) -> bytes:
    """Return the guest's root file system, which stays in memory."""
    archive = Initramfs()
    for name in _EMPTY_FOLDERS:
        archive.folder(name)
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    for applet in run([busybox, "--list-full"], log=log).decode().split():
        if applet != "bin/busybox":
            archive.link(applet, "/bin/busybox")
    archive.link("init", "/bin/busybox")  # started by that name, it is an init that reads /etc/inittab
    archive.tree(_PARTS / "root")
    archive.file("sbin/saltern-agent", _AGENT.read_bytes(), executable=True)
    files = {path.stem: path for path in modules.rglob("*.ko")}
    for order in sorted(_PARTS.glob("modules.*")):
        archive.file(f"lib/modules/{order.suffix.removeprefix('.')}", order.read_bytes())
        for name in order.read_text("ascii").split():
            if name not in files:
                raise Trouble(f"the kernel in {modules} has no module {name}; adapt {order}")
            archive.file(f"lib/modules/{name}.ko", files[name].read_bytes())
    return archive.packed()


def _write_disk(raw: Path, kernel: Path, initrd: Path, log: Path) -> None:
    """Write a disk with one active FAT partition, from which the BIOS starts syslinux, which starts the kernel."""
    sectors, first = DISK_BYTES // _SECTOR, _PARTITION_START // _SECTOR
    with raw.open("wb") as disk:
        disk.seek(RECORD_BYTES)
        disk.write(struct.pack("<4sH", b"SLTN", 0))
        disk.write(struct.pack("<B3sB3sII", _ACTIVE, _NO_CHS, _FAT16_LBA, _NO_CHS, first, sectors - first))
        disk.write(bytes(3 * 16) + b"\x55\xaa")
        disk.truncate(DISK_BYTES)
    partition = _partition(raw)
    shape = ["-T", str(sectors - first), "-h", "255", "-s", "63", "-H", str(first)]
    run(["mformat", "-i", partition, *shape, "-v", "SALTERN", "-N", _VOLUME_SERIAL, "::"], log=log)
    run(["syslinux", "--install", "--offset", str(_PARTITION_START), raw], log=log)
    with tempfile.TemporaryDirectory(prefix="saltern-demo-") as folder:
        boots = Path(folder) / "boots"
        boots.write_bytes(b"0\n")
        run(["mcopy", "-i", partition, boots, _PARTS / "syslinux.cfg", "::"], log=log)
    run(["mcopy", "-i", partition, kernel, "::vmlinuz"], log=log)
    run(["mcopy", "-i", partition, initrd, "::initrd.gz"], log=log)
    (append,) = re.findall("APPEND (.*)", (_PARTS / "syslinux.cfg").read_text("ascii"))
    write_dma_boot(raw, kernel.read_bytes(), initrd.read_bytes(), append, log)


def _partition(raw: Path) -> str:
    """Return mtools' name of the FAT partition in a raw disk."""
    return f"{raw}@@{_PARTITION_START}"
