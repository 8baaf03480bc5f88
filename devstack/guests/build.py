"""Build a guest's disk image. It is complete or absent.

Usage: `python3 -m devstack.guests.build demo OUT.qcow2`
or `python3 -m devstack.guests.build bootchain OUT.raw [--variant key|button|spin|crash|sleep] [--seconds N]`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from devstack.console import Trouble, fail, progress
from devstack.guests.bootchain import VARIANTS, build_bootchain
from devstack.guests.demo import build_demo

CACHE: Final = Path(__file__).parents[2] / "var" / "cache" / "guests"


def main(argv: list[str] | None = None) -> int:
    """Build the guest on the command line. Return 0, or 1 after one sentence about the failure."""
    options = _parser().parse_args(argv)
    try:
        if options.guest == "demo":
            build_demo(options.out, options.cache)
        else:
            build_bootchain(options.out, variant=options.variant, seconds=options.seconds)
    except Trouble as trouble:
        return fail(trouble)
    except (OSError, ValueError) as err:
        return fail(Trouble(f"the {options.guest} guest was not built: {err}"))
    progress(f"{options.guest} guest: {options.out} is ready, {options.out.stat().st_size / (1 << 20):.1f} MiB")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python3 -m devstack.guests.build", description="Build a guest's disk image.")
    guests = parser.add_subparsers(dest="guest", required=True, metavar="GUEST")
    demo = guests.add_parser("demo", help="a small Linux, as qcow2")
    demo.add_argument("out", type=Path)
    demo.add_argument("--cache", type=Path, default=CACHE, help="unpacked packages and the log (%(default)s)")
    bootchain = guests.add_parser("bootchain", help="a boot sector that counts its boots, as raw image")
    bootchain.add_argument("out", type=Path)
    bootchain.add_argument("--variant", choices=sorted(VARIANTS), default="poweroff", help="how a run ends")
    bootchain.add_argument("--seconds", type=int, default=0, help="duration of a run after counting (%(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
