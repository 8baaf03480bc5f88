"""What the images of emulated hosts have in common: files, units, keys, an initramfs, a disk.

An image is a folder with the host's file system (`disk.raw`), the files that start it, and the ssh keys by which this
machine and the host know each other. It needs root, as libvirt does, but no loop device.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from devstack.guests import initramfs, mmdebstrap
from devstack.guests.cache import built_once, digest
from devstack.guests.tools import run

_COMMON: Final = Path(__file__).with_name("common")
_UNITS: Final = {
    "multi-user.target.wants": ("emulated-host.service", "emulated-host-ready.service"),
    "sockets.target.wants": ("emulated-api.socket",),
}
_MASKED: Final = (
    "systemd-timesyncd.service", "apt-daily.timer", "apt-daily-upgrade.timer", "e2scrub_all.timer",
    "e2scrub_reap.service", "dpkg-db-backup.timer", "fstrim.timer", "logrotate.timer", "getty.target",
    "systemd-logind.service", "systemd-update-utmp.service", "systemd-pstore.service", "networking.service",
    "dev-hugepages.mount", "dev-mqueue.mount", "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "systemd-binfmt.service", "systemd-journal-flush.service", "systemd-user-sessions.service",
)  # fmt: skip
"""Units that an emulated host does without: each takes an emulated second."""


def build(cache: Path, name: str, script: Path, make: Callable[[Path, Path, Path], None]) -> Path:
    """Return the folder of an image in `cache`. Build it if it is missing.

    Its name has a digest of `script`, of the folder beside it with its own files, and of all that images share.
    `make` gets the new image, a place for the root folder, and a log. Raises Trouble with a remedy.
    """

    def made(folder: Path, log: Path) -> Path:
        image = folder / "image"
        image.mkdir()
        make(image, folder / "root", log)
        return image

    shared = [Path(module) for module in (__file__, initramfs.__file__, mmdebstrap.__file__)]
    return built_once(cache, name, digest(script, script.with_suffix(""), *shared, _COMMON), made)


def configure(root: Path, image: Path, parts: Path, masked: Sequence[str], log: Path) -> None:
    """Copy the files that all hosts have and those of `parts`, and make the keys of the host and of this machine.

    `masked` are further units that the host does without. Its name is in `parts`, as any other file.
    """
    for files in (_COMMON / "root", parts / "root"):
        shutil.copytree(files, root, dirs_exist_ok=True)
    units = root / "etc/systemd/system"
    for target, names in _UNITS.items():
        (units / target).mkdir(exist_ok=True)
        for name in names:
            (units / target / name).symlink_to(f"/etc/systemd/system/{name}")
    for name in (*_MASKED, *masked):
        (units / name).unlink(missing_ok=True)
        (units / name).symlink_to("/dev/null")
    hostname = (root / "etc/hostname").read_text().strip()
    (root / "etc/machine-id").write_text(f"{hashlib.sha256(hostname.encode()).hexdigest()[:32]}\n")
    (root / "etc/hosts").write_text(f"127.0.0.1 localhost {hostname}\n")
    for key in (root / "etc/ssh").glob("ssh_host_*"):
        key.unlink()
    host_key = root / "etc/ssh/ssh_host_ed25519_key"
    for key in (host_key, image / "key"):
        run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "saltern", "-f", key], log=log)
    (image / "known_hosts").write_text(f"saltern-host {host_key.with_suffix('.pub').read_text()}")
    accepted = root / "root/.ssh/authorized_keys"
    accepted.parent.mkdir(mode=0o700, exist_ok=True)
    accepted.write_bytes((image / "key.pub").read_bytes())


def modules_with_needs(root: Path, version: str, names: Sequence[str], log: Path) -> list[Path]:
    """Return the files of kernel modules and of all that they need, in the order in which they load."""
    found: dict[Path, None] = {}
    for name in names:
        listing = run(["chroot", root, "modprobe", "--set-version", version, "--show-depends", name], log=log).decode()
        loaded = [line.split()[1] for line in listing.splitlines() if line.startswith("insmod")]
        found |= dict.fromkeys(root / path.lstrip("/") for path in loaded)
    return list(found)


def first_files(root: Path, version: str, names: Sequence[str], log: Path) -> bytes:
    """Return an initramfs that loads kernel modules, mounts the host's disk and starts the host from there."""
    archive = initramfs.Initramfs()
    for name in ("bin", "dev", "proc", "root", "sys"):
        archive.folder(name)
    archive.file("init", (_COMMON / "initrd-init").read_bytes(), executable=True)
    archive.file("bin/busybox", (root / "bin/busybox").read_bytes(), executable=True)
    order = []
    for path in modules_with_needs(root, version, names, log):
        packed = path.suffix == ".xz"
        order.append(path.stem if packed else path.name)
        content = run(["xz", "--decompress", "--stdout", path], log=log) if packed else path.read_bytes()
        archive.file(f"modules/{order[-1]}", content)
    archive.file("modules/order", "".join(f"{name}\n" for name in order).encode())
    return archive.packed()


def write_disk(root: Path, disk: Path, size_bytes: int, log: Path) -> None:
    """Write the file system of a host."""
    with disk.open("wb") as file:
        file.truncate(size_bytes)
    options = ["-t", "ext4", "-L", "saltern-host", "-E", "lazy_itable_init=1,lazy_journal_init=1", "-d", str(root)]
    run(["mke2fs", "-q", "-F", *options, str(disk)], log=log)
