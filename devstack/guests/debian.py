"""The Debian guest: a usual Debian 12 with cloud-init, made by mmdebstrap from the host's mirror.

The disk has 3 GiB, mostly holes: a boot record, from 1 MiB on a FAT partition with syslinux, the kernel and its
initramfs, and behind that one ext4 partition, the root. It has no parts of Saltern.

It needs root, as libvirt does, but no loop device.
"""

from __future__ import annotations

import shutil
import struct
import tempfile
from pathlib import Path
from typing import Final

from devstack.console import Trouble, progress
from devstack.guests import mmdebstrap
from devstack.guests.cache import built_once, digest
from devstack.guests.tools import convert, run

PACKAGES: Final = (
    "linux-image-cloud-amd64", "systemd-sysv", "udev", "dbus", "cloud-init", "ifupdown", "isc-dhcp-client", "iproute2",
    "netbase", "ca-certificates", "openssh-server", "e2fsprogs",
)  # fmt: skip
_MADE_FROM: Final = (Path(__file__), Path(mmdebstrap.__file__))
ROOT_LABEL: Final = "debian-root"

_MIB: Final = 1 << 20
_SECTOR: Final = 512
_BOOT_START: Final = _MIB
_BOOT_BYTES: Final = 127 * _MIB
ROOT_START: Final = _BOOT_START + _BOOT_BYTES
_DISK_BYTES: Final = 3 << 30
_BOOT_CODE: Final = Path("/usr/lib/syslinux/mbr/mbr.bin")
_BOOT_CODE_BYTES: Final = 440
_FAT16_LBA: Final = 0x0E
_LINUX: Final = 0x83
_ACTIVE: Final = 0x80
_NO_CHS: Final = b"\xfe\xff\xff"
# Without no_timer_check the kernel counts a timer's ticks at its start, and panics on a machine too busy to emulate
# them. The last two disable a fifth level of page tables and AVX, which are slow to emulate.
_APPEND: Final = (
    f"root=LABEL={ROOT_LABEL} ro console=tty0 console=ttyS0,115200 quiet mitigations=off cryptomgr.notests "
    "no_timer_check no5lvl noxsave"
)
_SYSLINUX: Final = f"""DEFAULT debian
LABEL debian
  KERNEL vmlinuz
  INITRD initrd.img
  APPEND {_APPEND}
"""
# Only the drivers for this disk and for the drive of the seed. cloud-init's generator looks for that drive before udev
# runs, and without the last three drivers cloud-init stays off. The usual initramfs has drivers for every machine, and
# takes an emulated one a minute.
_HOOK: Final = r"""
mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"
echo MODULES=list >"$1/etc/initramfs-tools/conf.d/small"
printf 'virtio_pci\nvirtio_blk\next4\nvirtio_scsi\nsr_mod\nisofs\n' >"$1/usr/share/initramfs-tools/modules.d/small"
echo 'LABEL=debian-root / ext4 errors=remount-ro 0 1' >"$1/etc/fstab"
# An emulated machine on a busy host is slow; systemd must not give up because of that.
cd "$1/etc/systemd"
mkdir -p system.conf.d system/service.d
printf '[Manager]\nDefaultTimeoutStartSec=30min\nDefaultDeviceTimeoutSec=30min\n' >system.conf.d/slow.conf
printf '[Service]\nWatchdogSec=0\nTimeoutStartSec=30min\n' >system/service.d/slow.conf
# Keep the mirror. One ssh key and no locale are enough; the others take a minute.
mkdir -p "$1/etc/cloud/cloud.cfg.d"
printf 'apt: {preserve_sources_list: true}\nlocale: "false"\nssh_genkeytypes: [ed25519]\n' \
    >"$1/etc/cloud/cloud.cfg.d/90-small.cfg"
"""


def build_debian(cache: Path) -> Path:
    """Return the Debian guest's disk, a qcow2 image in `cache`. Build it if it is missing: minutes, with a mirror.

    Images of other versions are removed. `cache` gets `debian.log` too. Raises Trouble with a remedy.
    """
    return built_once(cache, "debian", digest(*_MADE_FROM), _make, suffix=".qcow2")


def _make(folder: Path, log: Path) -> Path:
    progress("Debian guest: mmdebstrap, one to four minutes")
    root, raw, disk = folder / "root", folder / "disk.raw", folder / "disk.qcow2"
    # apt's lists and their caches stay in the guest, which then only checks whether they are current: an emulated
    # processor takes minutes to unpack and read them.
    mmdebstrap.install(root, PACKAGES, log, "--skip=cleanup/apt/lists", f"--essential-hook={_HOOK}")
    run(["chroot", root, "apt-cache", "gencaches"], log=log)
    progress("Debian guest: writing the disk")
    _write_disk(raw, root, log)
    convert(raw, "raw", disk, "qcow2", log=log)
    return disk


def _write_disk(raw: Path, root: Path, log: Path) -> None:
    """Write a disk that the BIOS starts through syslinux, with the folder `root` as its root file system."""
    if not _BOOT_CODE.exists():
        raise Trouble(f"{_BOOT_CODE} is missing; run: apt-get install syslinux-common")
    kernels, initrds = sorted((root / "boot").glob("vmlinuz-*")), sorted((root / "boot").glob("initrd.img-*"))
    if not kernels or not initrds:
        raise Trouble(f"mmdebstrap installed no kernel; the log is {log}")
    first, boot, end = (size // _SECTOR for size in (_BOOT_START, _BOOT_BYTES, _DISK_BYTES))
    with raw.open("wb") as disk:
        disk.write(_BOOT_CODE.read_bytes().ljust(_BOOT_CODE_BYTES, b"\0"))
        disk.write(struct.pack("<4sH", b"SLTD", 0))
        disk.write(struct.pack("<B3sB3sII", _ACTIVE, _NO_CHS, _FAT16_LBA, _NO_CHS, first, boot))
        disk.write(struct.pack("<B3sB3sII", 0, _NO_CHS, _LINUX, _NO_CHS, first + boot, end - first - boot))
        disk.write(bytes(2 * 16) + b"\x55\xaa")
        disk.truncate(_DISK_BYTES)
    partition = f"{raw}@@{_BOOT_START}"
    run(["mformat", "-i", partition, "-T", str(boot), "-h", "255", "-s", "63", "-H", str(first), "::"], log=log)
    run(["syslinux", "--install", "--offset", str(_BOOT_START), raw], log=log)
    with tempfile.TemporaryDirectory(prefix="saltern-debian-") as folder:
        config = Path(folder) / "syslinux.cfg"
        config.write_text(_SYSLINUX)
        run(["mcopy", "-i", partition, config, "::"], log=log)
    run(["mcopy", "-i", partition, kernels[-1], "::vmlinuz"], log=log)
    run(["mcopy", "-i", partition, initrds[-1], "::initrd.img"], log=log)
    blocks = (_DISK_BYTES - ROOT_START) // 4096
    options = ["-t", "ext4", "-L", ROOT_LABEL, "-b", "4096", "-E", f"offset={ROOT_START}", "-d", str(root)]
    run(["mke2fs", "-q", "-F", *options, raw, str(blocks)], log=log)
    shutil.rmtree(root)
