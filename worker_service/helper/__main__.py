"""The contract's worker_helper as a process: `python -m worker_service.helper UUID [--settings FILE]`."""

from __future__ import annotations

import argparse

from worker_service.core.errors import SalternError
from worker_service.helper.jobs import PrefetchJob, VmJob
from worker_service.helper.runner import run


def main() -> None:
    """Do the job that the command line names."""
    parser = argparse.ArgumentParser(
        prog="worker_service.helper", description="Do the pending steps of one VM, or prefetch one image."
    )
    job = parser.add_mutually_exclusive_group(required=True)
    job.add_argument("uuid", nargs="?", help="the VM to work on")
    job.add_argument("--prefetch", metavar="KEY", help="the order in images/prefetch to carry out instead")
    parser.add_argument("--settings", help="the worker's settings file")
    parser.add_argument("--lock", type=int, help="descriptor of the job's lock, inherited from the starting process")
    parser.add_argument("--slot", nargs=2, metavar=("KIND", "FD"), help="kind and descriptor of an inherited slot")
    arguments = parser.parse_args()
    slot = (arguments.slot[0], int(arguments.slot[1])) if arguments.slot else None
    try:
        run(
            PrefetchJob(arguments.prefetch) if arguments.prefetch else VmJob(arguments.uuid),
            arguments.settings,
            arguments.lock,
            slot,
        )
    except SalternError as err:
        raise SystemExit(str(err)) from err


if __name__ == "__main__":
    main()
