"""The command `saltern-worker`: what an administrator needs on a worker's own terminal."""

from __future__ import annotations

import argparse
import sys

from worker_service.core.errors import SalternError
from worker_service.core.settings import load
from worker_service.state.identity import Identity


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="saltern-worker", description="Commands for this worker itself.")
    parser.add_argument(
        "command",
        choices=["fingerprint"],
        help="fingerprint: print this worker's key. Compare it on the master: saltern workers enroll ID",
    )
    parser.add_argument("--settings", help="the worker's settings file (default: /etc/saltern/worker.toml)")
    arguments = parser.parse_args()
    try:
        root = load(arguments.settings).data_root
        sys.stdout.write(f"{Identity(root).fingerprint}\n")
    except SalternError as err:
        raise SystemExit(str(err)) from err
    except OSError as err:
        raise SystemExit(f"The key in {root} cannot be read ({err.strerror}). Run this as root, on a worker.") from err


if __name__ == "__main__":
    main()
