"""Two guests, made from source and from Debian packages, so that nothing has to be fetched to try and to test Saltern.

    bootchain   a boot sector that counts its lives on its own disk: 0.1 s a life, for tests by the thousand
    demo        a small Linux with consoles, network and a power button: what `make run` shows
    debian      a real Debian 12 with cloud-init, for the slow tests; debian_root: its files, while it is off

    build       the command line: python3 -m devstack.guests.build {bootchain,demo} OUT
    initramfs   an archive that the kernel unpacks, written without root and the same each time
    tools       other programs, called with a log; files that appear whole or not at all

Standard library only: `make run` calls it with the Python of a fresh Debian 12, before anything is installed.
"""

from __future__ import annotations

from devstack.guests.bootchain import build_bootchain, read_counter
from devstack.guests.demo import (
    build_demo,
    demo_boot_files,
    read_demo_boots,
    read_demo_package,
    write_demo_config,
)

__all__ = [
    "build_bootchain",
    "build_demo",
    "demo_boot_files",
    "read_counter",
    "read_demo_boots",
    "read_demo_package",
    "write_demo_config",
]
