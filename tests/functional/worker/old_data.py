"""A data root of an older version, put back at its path: its text as it was, its disks newly made.

It lies at the same path as before: URIs of files name the files of the cache by their digests.
"""

import hashlib
import json
import os
import pwd
import re
import shutil
import struct
import subprocess
import time
from pathlib import Path

from devstack.guests import read_counter
from tests.fixtures import FIXTURES
from tests.lib.support import sha256, virsh

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
SIZE = 1 << 20


class OldData:
    """The data root that version `version` of a worker left below `/var/tmp/saltern-<version>`."""

    def __init__(self, version: str) -> None:
        self.fixture = FIXTURES / version / "worker"
        self.folder = Path(f"/var/tmp/saltern-{version}")
        self.data = self.folder / "data"
        self.images = self.folder / "images"

    def restore(self) -> None:
        """Put everything in its place, and boot the guests that were on."""
        self.images.mkdir(parents=True)
        self.folder.chmod(0o755)
        for name, filling in (("guest.raw", b"\0"), ("short.raw", b"\0")):
            (self.images / name).write_bytes(self.sectors(name).ljust(SIZE, filling))
        (self.images / "data.raw").write_bytes(b"payload".ljust(SIZE, b"\0"))
        (self.images / "big.raw").write_bytes(self.sectors("guest.raw").ljust(8 * SIZE, b"\1"))
        (self.images / "later.raw").write_bytes(self.sectors("short.raw").ljust(8 * SIZE, b"\2"))
        shutil.copytree(self.fixture / "data", self.data, symlinks=True, copy_function=shutil.copy)
        for path in self.data.rglob("*"):
            if path.is_file() and not path.is_symlink():
                path.write_text(path.read_text().replace("@BOOT_ID@", BOOT_ID.read_text().strip()))
        self._bases()

    def sectors(self, name: str) -> bytes:
        """Return a guest's image: its first two sectors."""
        return bytes.fromhex((self.fixture / f"{name}.hex").read_text())

    def _bases(self) -> None:
        """Make the images in the cache that the fixture names."""
        images = {sha256(path): path for path in self.images.iterdir()}
        for metadata in (self.data / "images/sha256").glob("*.json"):
            base = metadata.with_suffix("")
            shutil.copyfile(images[base.name], base)
            base.chmod(0o444)

    def overlay(self, place: Path, image: str, boots: int = 0) -> None:
        """Make a disk on top of a base, whose guest has booted that often."""
        base = self.data / "images/sha256" / sha256(self.images / image)
        argv = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", place]
        subprocess.run(argv, check=True)
        if boots:
            sector = self.folder / "sector"
            sector.write_bytes(self.counted(boots)[512:1024])
            subprocess.run(["qemu-io", "-f", "qcow2", "-c", f"write -s {sector} 512 512", place], check=True)
            assert read_counter(place, "qcow2") == boots

    def counted(self, boots: int) -> bytes:
        """Return the image of the guest `guest.raw` after that many boots."""
        image = bytearray((self.images / "guest.raw").read_bytes())
        struct.pack_into("<I", image, 512 + 8, boots)  # after the magic word: devstack/guests/bootchain.py
        return bytes(image)

    def flatten(self, folder: Path, boots: int) -> None:
        """Make a disk to be saved, and put its digest and size into the record."""
        place = folder / "hda.sealed.qcow2"
        raw = self.folder / "sealed.raw"
        raw.write_bytes(self.counted(boots))
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, place], check=True)
        (then,) = json.loads((folder / "record.json").read_text())["disks"].values()
        for path in (folder / "record.json", folder / "hda.manifest.json"):
            text = path.read_text().replace(then["sealed_sha256"], sha256(place))
            path.write_text(re.sub(rf"\b{then['sealed_size']}\b", str(place.stat().st_size), text))

    def boot(self, uuid: str, *, suspended: bool = False) -> None:
        """Define and start the domain of a VM, and return at once. Files that QEMU truncates are restored."""
        folder = self.data / "vms" / uuid
        owner = pwd.getpwnam("libvirt-qemu")
        screen = folder / "screen"
        screen.mkdir(mode=0o700, exist_ok=True)
        os.chown(screen, owner.pw_uid, owner.pw_gid)
        logs = {path: path.read_text() for path in folder.glob("agent.log")}
        virsh("define", str(self.fixture / f"domains/{uuid}.xml"))
        virsh("start", uuid)
        for path, text in logs.items():
            if path.read_text() != text:
                path.write_text(text)
        if suspended:
            virsh("suspend", uuid)

    def ticket(self, secret: str) -> str:
        """Extend the life of a ticket, and return its digest."""
        key = hashlib.sha256(secret.encode()).hexdigest()
        path = self.data / "tickets" / key
        ticket = json.loads(path.read_text())
        path.write_text(json.dumps(ticket | {"expires_at": time.monotonic() + 3600}))
        return key
