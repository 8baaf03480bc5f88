"""The Xen host: Xen and a Debian dom0 with libvirt's xen driver, made by mmdebstrap from this machine's mirror."""

from __future__ import annotations

import gzip
import lzma
import shutil
from pathlib import Path
from typing import Final

from devstack.console import Trouble, progress
from devstack.guests import mmdebstrap
from devstack.guests.tools import run
from devstack.hosts import image as images

PACKAGES: Final = (
    "xen-system-amd64", "grub-xen-host", "libvirt-daemon-system", "libvirt-daemon-driver-xen", "libvirt-clients",
    "qemu-system-xen", "qemu-utils", "python3", "openssh-server", "systemd-sysv", "dbus", "udev", "iproute2", "kmod",
    "mount", "procps", "mtools", "busybox-static", "dnsmasq-base", "iptables", "nftables", "nasm", "ca-certificates",
)  # fmt: skip
_PARTS: Final = Path(__file__).with_name("xen")
_DISK_BYTES: Final = 4 << 30
_DISK_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_MODULES: Final = (
    *_DISK_MODULES, "xen-evtchn", "xen-gntdev", "xen-gntalloc", "xen-privcmd", "xenfs", "xen-netback", "xen-blkback",
    "xen-pciback", "virtio_net", "virtio_rng", "loop", "bridge", "tun", "veth", "br_netfilter", "xt_physdev",
    "9pnet_virtio", "9p", "squashfs", "erofs", "isofs", "overlay",
)  # fmt: skip
_MODULE_FOLDERS: Final = ("net/netfilter", "net/ipv4/netfilter", "net/ipv6/netfilter", "net/bridge")
_NOT_NEEDED: Final = ("qemu/edk2-*", "qemu/*.fd", "qemu/openbios*", "qemu/skiboot*")
# The processor that QEMU emulates under Xen has no VME, so no model of libvirt 9.0 fits it, and the xen driver does not
# start. Let the oldest model fit.
_CPU_MODEL: Final = "usr/share/libvirt/cpu_map/x86_486.xml"
_MASKED: Final = (
    "xen.service", "xendomains.service", "polkit.service", "dnsmasq.service", "virtlockd.socket",
    "virtlockd-admin.socket", "libvirt-guests.service", "systemd-udev-trigger.service", "systemd-remount-fs.service",
    "systemd-sysusers.service", "systemd-modules-load.service", "systemd-random-seed.service",
    "systemd-update-utmp-runlevel.service", "kmod-static-nodes.service", "sys-kernel-config.mount",
    "sys-fs-fuse-connections.mount", "modprobe@configfs.service", "modprobe@dm_mod.service", "modprobe@drm.service",
    "modprobe@efi_pstore.service", "modprobe@fuse.service", "modprobe@loop.service",
    "systemd-sysctl.service", "systemd-tmpfiles-setup-dev.service",
)  # fmt: skip
"""`host-own` does what `xen` would, and the kernel itself makes the files of devices."""
_UNPACK: Final = """
cd "$1" && mkdir unpack && chroot "$1" sh -c '
cd /unpack
kernel=$(apt-cache depends --important linux-image-amd64 | sed -n "s/.*Depends: \\(linux-image-\\)/\\1/p" | head -n 1)
apt-get download -q $kernel
for file in *.deb; do dpkg-deb --fsys-tarfile "$file" | tar -x --keep-directory-symlink -C / && rm "$file"; done
' && rmdir unpack
"""
_XZ: Final = b"\xfd7zXZ\x00"
_ELF: Final = b"\x7fELF"


def build_xen(cache: Path) -> Path:
    """Return the folder of the Xen host's image in `cache`. Build it if it is missing: a minute, with a mirror.

    Images of other versions are removed. `cache` gets `xen.log` too. Raises Trouble with a remedy.
    """
    return images.build(cache, "xen", Path(__file__), _make)


def _make(image: Path, root: Path, log: Path) -> None:
    progress("Xen host: mmdebstrap, about a minute")
    own = ("--dpkgopt=force-unsafe-io", *mmdebstrap.without(*_NOT_NEEDED), f"--customize-hook={_UNPACK}")
    mmdebstrap.install(root, PACKAGES, log, *own)
    progress("Xen host: writing the disk")
    images.configure(root, image, _PARTS, _MASKED, log)
    _mask_generators(root)
    model = root / _CPU_MODEL
    model.write_text("".join(line for line in model.read_text().splitlines(keepends=True) if "'vme'" not in line))
    _boot_files(root, image, log)
    images.write_disk(root, image / "disk.raw", _DISK_BYTES, log)


def _mask_generators(root: Path) -> None:
    """Keep systemd from running its generators at the start and at each reload: they find nothing, in seconds."""
    masks = root / "etc/systemd/system-generators"
    masks.mkdir()
    for path in (root / "lib/systemd/system-generators").iterdir():
        (masks / path.name).symlink_to("/dev/null")


def _boot_files(root: Path, image: Path, log: Path) -> None:
    """Write Xen, dom0's kernel and its initramfs, as QEMU starts them: both unpacked, to save emulated minutes."""
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    (image / "xen").write_bytes(gzip.decompress(next((root / "boot").glob("xen-4.*.gz")).read_bytes()))
    packed = kernel.read_bytes()
    linux = lzma.LZMADecompressor().decompress(packed[packed.index(_XZ) :])
    if not linux.startswith(_ELF):
        raise Trouble(f"{kernel.name} has no kernel that is packed by xz; adapt devstack/hosts/xen.py")
    (image / "vmlinux").write_bytes(linux)

    run(["chroot", root, "depmod", version], log=log)
    (image / "initrd.gz").write_bytes(images.first_files(root, version, _DISK_MODULES, log))
    modules = root / "lib/modules" / version
    chosen = set(images.modules_with_needs(root, version, _MODULES, log))
    for folder in _MODULE_FOLDERS:
        chosen |= set((modules / "kernel" / folder).rglob("*.ko"))
    for path in modules.rglob("*.ko"):
        if path not in chosen:
            path.unlink()
    run(["chroot", root, "depmod", version], log=log)
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()
