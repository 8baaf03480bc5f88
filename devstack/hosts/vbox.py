"""The VirtualBox host: Debian unstable with VirtualBox, whose kernel module dkms builds, and Python of this machine.

The image is a folder as that of the Xen host. Debian has VirtualBox in unstable alone, whose Python is too new for this
clone's .venv, so the host gets the Python that .venv was made with, by copies of its files.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from devstack.console import Trouble, progress
from devstack.guests import mmdebstrap
from devstack.guests.tools import run
from devstack.hosts import image as images
from devstack.layout import PYTHON

PACKAGES: Final = (
    "linux-image-amd64", "linux-headers-amd64", "virtualbox", "virtualbox-dkms", "openssh-server", "iproute2", "kmod",
    "mount", "procps", "busybox-static", "qemu-utils", "nasm", "ca-certificates", "libvirt0", "libexpat1", "libffi8",
    "libsqlite3-0", "systemd-sysv", "dbus", "udev", "nftables", "passwd",
)  # fmt: skip
_PARTS: Final = Path(__file__).with_name("vbox")
_DISK_BYTES: Final = 8 << 30
_DISK_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c-cryptoapi", "ext4")
_UNNEEDED: Final = ("usr/src", "usr/lib/gcc", "var/lib/dkms", "usr/lib/x86_64-linux-gnu/dri", "usr/lib/llvm*")
"""What only the installation needs."""
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"


def build_vbox(cache: Path) -> Path:
    """Return the folder of the VirtualBox host's image in `cache`. Build it if it is missing: four minutes.

    Debian unstable moves, so an image may work today that cannot be built tomorrow: it stays until these files change.
    `cache` gets `vbox.log` too. Raises Trouble with a remedy.
    """
    return images.build(cache, "vbox", Path(__file__), _make)


def _make(image: Path, root: Path, log: Path) -> None:
    progress("VirtualBox host: mmdebstrap and dkms, about three minutes")
    mirror = mmdebstrap.apt_sources(log).split()[1]
    sources = f"deb [check-valid-until=no signed-by={_KEYRING}] {mirror} sid main contrib\n"
    own = ("--dpkgopt=force-unsafe-io", '--aptopt=Apt::Install-Recommends "false"')
    mmdebstrap.install(root, PACKAGES, log, *own, suite="sid", sources=sources)
    if not list(root.glob("lib/modules/*/updates/dkms/vboxdrv.ko*")):
        raise Trouble(f"dkms has built no vboxdrv for the kernel of Debian unstable; the log is {log}. Try again later")
    progress("VirtualBox host: writing the disk")
    _add_python(root, log)
    images.configure(root, image, _PARTS, (), log)
    _boot_files(root, image, log)
    images.write_disk(root, image / "disk.raw", _DISK_BYTES, log)


def _add_python(root: Path, log: Path) -> None:
    """Copy the Python of .venv, which Debian 12 has, with its standard library."""
    name = PYTHON.resolve().name
    packages = (name, f"{name}-minimal", f"lib{name}-minimal", f"lib{name}-stdlib", f"lib{name}")
    listing = run(["dpkg-query", "--listfiles", *packages], log=log).decode()
    files = [path for path in dict.fromkeys(listing.splitlines()) if Path(path).is_file() or Path(path).is_symlink()]
    kept = [path for path in files if not path.startswith("/usr/share/")]
    for path in map(Path, kept):
        target = root / path.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copy2(path, target, follow_symlinks=False)
    for link in ("python3", "python"):
        (root / "usr/bin" / link).unlink(missing_ok=True)
        (root / "usr/bin" / link).symlink_to(name)


def _boot_files(root: Path, image: Path, log: Path) -> None:
    """Write the kernel and its initramfs, and remove what the host does not need."""
    kernel = next((root / "boot").glob("vmlinuz-*"))
    shutil.copy2(kernel, image / "vmlinuz")
    version = kernel.name.removeprefix("vmlinuz-")
    (image / "initrd.gz").write_bytes(images.first_files(root, version, _DISK_MODULES, log))
    for pattern in (*_UNNEEDED, "boot/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
