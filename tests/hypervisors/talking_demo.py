"""The demo guest as the suite needs it: it says which disc is in its drive, and its address."""

from pathlib import Path

from devstack.guests import build_demo, write_demo_config
from devstack.guests.build import CACHE


def build_talking_demo(path: Path) -> None:
    """Write the guest's disk. The cache has the packages that it is made from."""
    build_demo(path, CACHE)
    write_demo_config(path, "qcow2", "demo.say=yes\n")
