"""Guests made from source and from Debian packages, so that trials and tests of Saltern need no downloaded image.

    bootchain   a boot sector that counts its boots on its own disk in 0.1 s, for thousands of tests
    demo        a small Linux with consoles, network and a power button, for `make run`
    debian      a real Debian 12 with cloud-init, for the slow tests; debian_root: its files, while it is off

    build       the command line: python3 -m devstack.guests.build {bootchain,demo} OUT
    cache       what takes long to build, built once
    mmdebstrap  a Debian in a folder
    initramfs   an archive that the kernel unpacks, written without root and reproducibly
    tools       other programs, called with a log; files that are complete or absent

Standard library only: `make run` calls it with the Python of a fresh Debian 12, before anything is installed.
"""

from __future__ import annotations

from devstack.guests.bootchain import build_bootchain, read_counter, read_long_mode
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
    "read_long_mode",
    "write_demo_config",
]
