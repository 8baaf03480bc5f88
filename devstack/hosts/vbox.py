"""The VirtualBox host: Debian unstable with VirtualBox, whose kernel module dkms builds, and Python of this machine.

The image is a folder as that of the Xen host. Debian has VirtualBox in unstable alone, whose Python is too new for this
clone's .venv, so the host gets the Python that .venv was made with, by copies of its files.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

from devstack.console import Trouble, progress
from devstack.guests.debian import apt_options, apt_sources
from devstack.guests.initramfs import Initramfs
from devstack.guests.tools import run
from devstack.hosts.code import environment_disk, source_disk
from devstack.hosts.machine import Image, Machine
from devstack.layout import PYTHON, REPO

PACKAGES: Final = (
    "linux-image-amd64", "linux-headers-amd64", "virtualbox", "virtualbox-dkms", "openssh-server", "iproute2", "kmod",
    "mount", "procps", "busybox-static", "qemu-utils", "nasm", "ca-certificates", "libvirt0", "libexpat1", "libffi8",
    "libsqlite3-0", "systemd-sysv", "dbus", "udev", "nftables",
)  # fmt: skip
CACHE: Final = REPO / "var/cache/hosts"
_PARTS: Final = Path(__file__).with_name("vbox")
_DISK_BYTES: Final = 8 << 30
_DISK_MODULES: Final = ("virtio_pci", "virtio_blk", "crc32c-cryptoapi", "ext4")
_NO_DOCUMENTS: Final = ("man", "doc", "locale", "info")
_UNNEEDED: Final = ("usr/src", "usr/lib/gcc", "var/lib/dkms", "usr/lib/x86_64-linux-gnu/dri", "usr/lib/llvm*")
"""What only the installation needs."""
_UNITS: Final = {
    "multi-user.target.wants": ("emulated-host.service", "emulated-host-ready.service"),
    "sockets.target.wants": ("emulated-api.socket",),
}
_MASKED: Final = (
    "systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "dpkg-db-backup.timer", "fstrim.timer", "logrotate.timer", "getty.target",
    "systemd-logind.service", "systemd-update-utmp.service", "systemd-pstore.service", "networking.service",
    "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-binfmt.service", "systemd-journal-flush.service", "systemd-user-sessions.service", "virtualbox.service",
)  # fmt: skip
"""Units that an emulated host does without."""
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
# A version manager's python3 would take half a second for each package.
_PATH: Final = "PATH=/usr/sbin:/usr/bin:/sbin:/bin"


def build_vbox(cache: Path) -> Path:
    """Return the folder of the VirtualBox host's image in `cache`. Build it if it is missing: four minutes.

    Debian unstable moves, so an image may work today that cannot be built tomorrow: it stays until these files change.
    `cache` gets `vbox.log` too. Raises Trouble with a remedy.
    """
    cache.mkdir(parents=True, exist_ok=True)
    out = cache / f"vbox-{_digest()}"
    with (cache / ".vbox.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if out.exists():
            return out
        if os.geteuid() != 0:
            raise Trouble("only root can build the VirtualBox host: mmdebstrap makes files that belong to root")
        log = cache / "vbox.log"
        log.write_bytes(b"")
        with tempfile.TemporaryDirectory(prefix="vbox-build-", dir=cache) as name:
            folder = Path(name)
            folder.chmod(0o755)
            image = folder / "image"
            image.mkdir()
            progress("VirtualBox host: mmdebstrap and dkms, about three minutes")
            root = folder / "root"
            _bootstrap(root, folder, log)
            progress("VirtualBox host: writing the disk")
            _add_python(root, log)
            _configure(root, image, log)
            _boot_files(root, image, log)
            _write_disk(root, image / "disk.raw", log)
            for other in set(cache.glob("vbox-*")) - {folder}:
                shutil.rmtree(other)
            image.rename(out)
        return out


def _digest() -> str:
    files = [Path(__file__), *sorted(path for path in _PARTS.rglob("*") if path.is_file())]
    return hashlib.sha256(b"".join(path.read_bytes() for path in files)).hexdigest()[:16]


def _bootstrap(root: Path, folder: Path, log: Path) -> None:
    """Install Debian unstable into a folder from this machine's mirror."""
    archive, sources = folder / "root.tar", folder / "sources.list"
    mirror = apt_sources(log).split()[1]
    sources.write_text(f"deb [check-valid-until=no signed-by={_KEYRING}] {mirror} sid main contrib\n")
    options = [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in _NO_DOCUMENTS]
    options += ["--dpkgopt=force-unsafe-io", '--aptopt=Apt::Install-Recommends "false"']
    options += [f"--aptopt={option}" for option in (*apt_options(log), 'Acquire::Languages "none";')]
    run(
        [
            *("env", _PATH, "mmdebstrap", "--mode=root", "--variant=apt", *options),
            *(f"--include={','.join(PACKAGES)}", "sid", archive, sources),
        ],
        log=log,
    )
    root.mkdir()
    run(["tar", "--extract", "--numeric-owner", "--xattrs", "--file", archive, "--directory", root], log=log)
    archive.unlink()
    if not list(root.glob("lib/modules/*/updates/dkms/vboxdrv.ko*")):
        raise Trouble(f"dkms has built no vboxdrv for the kernel of Debian unstable; the log is {log}. Try again later")


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


def _configure(root: Path, image: Path, log: Path) -> None:
    """Copy the files of the host, and make the keys by which it and this machine know each other."""
    shutil.copytree(_PARTS / "root", root, dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    for target, names in _UNITS.items():
        (units / target).mkdir(exist_ok=True)
        for name in names:
            (units / target / name).symlink_to(f"/etc/systemd/system/{name}")
    for name in _MASKED:
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    (root / "etc/machine-id").write_text("5a17e200000000000000000000000001\n")
    (root / "etc/hostname").write_text("vbox\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost vbox\n")
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
    """Write the kernel and an initramfs that mounts the disk, and remove what the host does not need."""
    kernel = next((root / "boot").glob("vmlinuz-*"))
    version = kernel.name.removeprefix("vmlinuz-")
    shutil.copy2(kernel, image / "vmlinuz")
    archive = Initramfs()
    for name in ("bin", "dev", "proc", "root", "sys"):
        archive.folder(name)
    archive.file("init", (_PARTS / "initrd-init").read_bytes(), executable=True)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), executable=True)
    needed = []
    for name in _DISK_MODULES:
        listing = run(["chroot", root, "modprobe", "--set-version", version, "--show-depends", name], log=log).decode()
        needed += [root / line.split()[1].lstrip("/") for line in listing.splitlines() if line.startswith("insmod")]
    needed = list(dict.fromkeys(needed))
    archive.file("modules/order", "".join(f"{path.name.removesuffix('.xz')}\n" for path in needed).encode())
    for path in needed:
        content = run(["xz", "--decompress", "--stdout", path], log=log) if path.suffix == ".xz" else path.read_bytes()
        archive.file(f"modules/{path.name.removesuffix('.xz')}", content)
    (image / "initrd.gz").write_bytes(archive.packed())
    for pattern in (*_UNNEEDED, "boot/*"):
        for path in root.glob(pattern):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _write_disk(root: Path, disk: Path, log: Path) -> None:
    with disk.open("wb") as file:
        file.truncate(_DISK_BYTES)
    options = ["-t", "ext4", "-L", "vbox-root", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", str(root)]
    run(["mke2fs", "-q", "-F", *options, str(disk)], log=log)


@contextmanager
def vbox_host(
    folder: Path, *, cache: Path = CACHE, ports: Mapping[int, int] | None = None, processors: int = 2
) -> Iterator[Machine]:
    """Start a VirtualBox host with the files of its run in `folder`, and stop it at the end. `ports` as of `xen_host`.

    Raises Trouble.
    """
    disks = {source_disk(cache): REPO, environment_disk(cache): PYTHON.parents[1].resolve()}
    with Machine(vbox_image(build_vbox(cache), disks, processors=processors), folder, ports=ports) as host:
        yield host


def vbox_image(
    folder: Path, disks: Mapping[Path, Path], *, processors: int = 2, memory_mib: int = 3072, systemd: bool = False
) -> Image:
    """Return how QEMU starts the image that `build_vbox` has made. `disks` and `systemd` as of `xen_image`."""
    mounts = ",".join(f"vd{letter}:{quote(str(place))}" for letter, place in zip("bcdef", disks.values(), strict=False))
    linux = (
        "console=ttyS0 mitigations=off audit=0 nokaslr loglevel=4 random.trust_cpu=on kvm.enable_virt_at_load=0 "
        f"net.ifnames=0 saltern.mounts={mounts}"
        + (" saltern.init=/sbin/init systemd.unit=multi-user.target systemd.show_status=0 quiet" if systemd else "")
    )
    return Image(
        folder,
        (
            *("-machine", "q35", "-cpu", "max,-smap,-smep,-la57,+svm"),
            *("-smp", str(processors), "-m", str(memory_mib)),
            *("-kernel", str(folder / "vmlinuz"), "-initrd", str(folder / "initrd.gz"), "-append", linux),
        ),
        tuple(disks),
    )
