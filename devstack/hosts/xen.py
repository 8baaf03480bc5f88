"""The Xen host: Xen and a Debian dom0 with libvirt's xen driver, made by mmdebstrap from this machine's mirror.

The image is a folder with a file system of dom0 (`disk.raw`), the files that start it, and the ssh keys by which
this machine and dom0 know each other. It needs root, as libvirt does, but no loop device.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import lzma
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

from devstack.console import Trouble, progress
from devstack.guests.debian import apt_options, apt_sources
from devstack.guests.initramfs import Initramfs
from devstack.guests.tools import run

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
_NO_DOCUMENTS: Final = ("man", "doc", "locale", "info", "qemu/edk2-*", "qemu/*.fd", "qemu/openbios*", "qemu/skiboot*")
# The processor that QEMU emulates under Xen has no VME, so no model of libvirt 9.0 fits it, and the xen driver does not
# start. Let the oldest model fit.
_CPU_MODEL: Final = "usr/share/libvirt/cpu_map/x86_486.xml"
_UNITS: Final = {
    "multi-user.target.wants": ("emulated-host.service", "emulated-host-ready.service"),
    "sockets.target.wants": ("emulated-api.socket",),
}
_MASKED: Final = (
    "xen.service", "xendomains.service", "systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "dpkg-db-backup.timer", "fstrim.timer", "logrotate.timer",
    "getty.target", "systemd-logind.service", "polkit.service", "systemd-update-utmp.service",
    "systemd-pstore.service", "networking.service", "dnsmasq.service", "dev-hugepages.mount", "dev-mqueue.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount", "systemd-binfmt.service", "systemd-journal-flush.service",
    "virtlockd.socket", "virtlockd-admin.socket", "libvirt-guests.service", "systemd-user-sessions.service",
)  # fmt: skip
"""Units that a host for tests does without: each takes an emulated second. `dom0-setup` does what `xen` would."""
# mmdebstrap runs python3 for each package. A version manager's python3 would take half a second each time.
_PATH: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"
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

    Its name has a digest of what it is made from. Images of other versions are removed. `cache` gets `xen.log` too.
    Raises Trouble with a remedy.
    """
    cache.mkdir(parents=True, exist_ok=True)
    out = cache / f"xen-{_digest()}"
    with (cache / ".xen.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return out
        if os.geteuid() != 0:
            raise Trouble("only root can build the Xen host: mmdebstrap makes files that belong to root")
        log = cache / "xen.log"
        log.write_bytes(b"")
        with tempfile.TemporaryDirectory(prefix="xen-build-", dir=cache) as name:
            folder = Path(name)
            folder.chmod(0o755)
            image = folder / "image"
            image.mkdir()
            progress("Xen host: mmdebstrap, about a minute")
            root = folder / "root"
            _bootstrap(root, folder, log)
            progress("Xen host: writing the disk")
            _configure(root, image, log)
            _boot_files(root, image, log)
            _write_disk(root, image / "disk.raw", log)
            for other in set(cache.glob("xen-*")) - {folder}:
                shutil.rmtree(other)
            image.rename(out)
        return out


def _digest() -> str:
    files = [Path(__file__), *sorted(path for path in _PARTS.rglob("*") if path.is_file())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _bootstrap(root: Path, folder: Path, log: Path) -> None:
    """Install Debian into a folder from this machine's mirrors."""
    # An archive and not a folder: the installation mounts file systems in its folder, and `folder` must be removable at
    # any time.
    archive, sources = folder / "root.tar", folder / "sources.list"
    sources.write_text(apt_sources(log))
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NO_DOCUMENTS]
    options += [f"--aptopt={option}" for option in (*apt_options(log), 'Acquire::Languages "none";')]
    run(
        [
            *("env", _PATH, "mmdebstrap", "--mode=root", "--variant=apt", "--dpkgopt=force-unsafe-io", *options),
            *(f"--include={','.join(PACKAGES)}", f"--customize-hook={_UNPACK}"),
            *("bookworm", archive, sources),
        ],
        log=log,
    )
    root.mkdir()
    run(["tar", "--extract", "--numeric-owner", "--xattrs", "--file", archive, "--directory", root], log=log)
    archive.unlink()


def _configure(root: Path, image: Path, log: Path) -> None:
    """Copy the files of dom0, and make the keys by which it and this machine know each other."""
    shutil.copytree(_PARTS / "root", root, dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    for target, names in _UNITS.items():
        for name in names:
            (units / target).mkdir(exist_ok=True)
            (units / target / name).symlink_to(f"/etc/systemd/system/{name}")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (root / "etc/machine-id").write_text("5a17e200000000000000000000000000\n")
    (root / "etc/hostname").write_text("dom0\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost dom0\n")
    model = root / _CPU_MODEL
    model.write_text("".join(line for line in model.read_text().splitlines(keepends=True) if "'vme'" not in line))
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    host_key = root / "etc/ssh/ssh_host_ed25519_key"
    for key in (host_key, image / "key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "saltern", "-f", key], log=log)
    (image / "known_hosts").write_text(f"saltern-host {host_key.with_suffix('.pub').read_text()}")
    accepted = root / "root/.ssh/authorized_keys"
    accepted.parent.mkdir(mode=0o700, exist_ok=True)
    accepted.write_bytes((image / "key.pub").read_bytes())


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
    modules = root / "lib/modules" / version
    chosen = {root / path.lstrip("/") for path in _closure(root, version, _MODULES, log)}
    for folder in _MODULE_FOLDERS:
        chosen |= set((modules / "kernel" / folder).rglob("*.ko"))
    archive = Initramfs()
    for name in ("bin", "dev", "proc", "root", "sys"):
        archive.folder(name)
    archive.file("init", (_PARTS / "initrd-init").read_bytes(), executable=True)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), executable=True)
    needed = [root / path.lstrip("/") for path in _closure(root, version, _DISK_MODULES, log)]
    archive.file("modules/order", "".join(f"{path.name}\n" for path in needed).encode())
    for path in needed:
        archive.file(f"modules/{path.name}", path.read_bytes())
    (image / "initrd.gz").write_bytes(archive.packed())
    for path in modules.rglob("*.ko"):
        if path not in chosen:
            path.unlink()
    run(["chroot", root, "depmod", version], log=log)
    shutil.rmtree(root / "boot")
    (root / "boot").mkdir()


def _closure(root: Path, version: str, modules: tuple[str, ...], log: Path) -> list[str]:
    """Return the files of kernel modules and of all that they need, in the order in which they load."""
    found: dict[str, None] = {}
    for name in modules:
        listing = run(["chroot", root, "modprobe", "--set-version", version, "--show-depends", name], log=log).decode()
        found |= {line.split()[1]: None for line in listing.splitlines() if line.startswith("insmod")}
    return list(found)


def _write_disk(root: Path, disk: Path, log: Path) -> None:
    """Write the file system of dom0."""
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    options = ["-t", "ext4", "-L", "dom0-root", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", str(root)]
    run(["mke2fs", "-q", "-F", *options, str(disk)], log=log)
