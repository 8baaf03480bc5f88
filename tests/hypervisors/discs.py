"""CDs for guests: one that installs a boot-sector guest, and one with a file."""

import io
import tempfile
from pathlib import Path

import pycdlib

from devstack.guests import build_bootchain
from devstack.guests.bootchain import Variant
from devstack.guests.tools import run

_INSTALLER = Path(__file__).with_name("installer.asm")
_SECTORS = 2
"""Those of a guest that has not booted: its code, and its counter."""


def build_installer(out: Path, variant: Variant = "poweroff") -> None:
    """Write a bootable CD that copies a BootChain guest to the first hard disk, and boots that."""
    with tempfile.TemporaryDirectory(prefix="saltern-disc-") as name:
        folder = Path(name)
        run(["nasm", "-Wall", "-f", "bin", _INSTALLER, "-o", folder / "installer"])
        build_bootchain(folder / "guest", variant=variant)
        code = (folder / "installer").read_bytes() + (folder / "guest").read_bytes()[: _SECTORS * 512]
    _write(out, "BOOT.BIN", code, boots=len(code) // 512)


def build_disc(out: Path, content: bytes) -> None:
    """Write a CD that has one file, `CONTENT.TXT`, and does not boot."""
    _write(out, "CONTENT.TXT", content)


def _write(out: Path, name: str, content: bytes, boots: int = 0) -> None:
    disc = pycdlib.PyCdlib()
    disc.new(vol_ident="SALTERN")
    disc.add_fp(io.BytesIO(content), len(content), f"/{name};1")
    if boots:
        disc.add_eltorito(f"/{name};1", bootcatfile="/BOOT.CAT;1", boot_load_size=boots)
    disc.write(str(out))
    disc.close()
