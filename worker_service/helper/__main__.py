"""The contract's worker_helper as a process: `python -m worker_service.helper UUID [--settings FILE]`."""

from __future__ import annotations

import argparse

from worker_service.core.errors import SalternError
from worker_service.helper.step_loop import run


def main() -> None:
    """Work on the VM that the command line names."""
    parser = argparse.ArgumentParser(prog="worker_service.helper", description="Do the pending steps of one VM.")
    parser.add_argument("uuid", help="the VM to work on")
    parser.add_argument("--settings", help="the worker's settings file")
    parser.add_argument("--lock", type=int, help="descriptor of the VM's work lock, inherited from whoever forked this")
    parser.add_argument("--slot", nargs=2, metavar=("KIND", "FD"), help="kind and descriptor of a seat, inherited too")
    arguments = parser.parse_args()
    slot = (arguments.slot[0], int(arguments.slot[1])) if arguments.slot else None
    try:
        run(arguments.uuid, arguments.settings, arguments.lock, slot)
    except SalternError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
