"""`saltern`: the command line, over HTTP only.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not found, 4 timeout, 5 denied.
"""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line and exit with its code. Print an error as one sentence, without a traceback."""
    from master_service.cli.app import app  # noqa: PLC0415
    from master_service.cli.common import terminal  # noqa: PLC0415 - `import master_service.cli` stays free
    from master_service.cli.common.client import Failure  # noqa: PLC0415

    try:
        app(prog_name="saltern")
    except Failure as failure:
        terminal.warn(f"saltern: {failure}", of_file=failure.of_file)
        sys.exit(failure.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
