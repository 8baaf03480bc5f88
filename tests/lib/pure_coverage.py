"""Coverage of the pure code by its own unit tests: every line and branch. `python -m tests.lib.pure_coverage`

Pure code has no I/O, so a test can reach all of it. Its tests run in one process, without a sandbox, in seconds.
The module imports nothing of the product, because code imported before the measurement would not count.
"""

import sys
from io import StringIO
from typing import Final

import coverage
import pytest

from devstack.layout import REPO

PURE: Final = {
    "master_service/planning": ["master_service/planning/*"],
    "master_service/policy": ["master_service/policy/*"],
    "worker_service/contract": ["worker_service/contract/*"],
    "worker_service/state (record, lifecycle, command_rules, bases)": [
        f"worker_service/state/{name}.py" for name in ("record", "lifecycle", "command_rules", "bases")
    ],
    "worker_service/transfer (access)": ["worker_service/transfer/access.py"],
    "worker_service/hypervisor (kvm_xml, xen/xml, xen/kinds)": [
        f"worker_service/hypervisor/{name}.py" for name in ("kvm_xml", "xen/xml", "xen/kinds")
    ],
    "worker_service/hypervisor/vbox (arguments, machine_xml)": [
        f"worker_service/hypervisor/vbox/{name}.py" for name in ("arguments", "machine_xml")
    ],
    "worker_service/console (scancodes, rfb_messages, rfb_pictures)": [
        f"worker_service/console/{name}.py" for name in ("scancodes", "rfb_messages", "rfb_pictures")
    ],
    "worker_service/guest_agent (report, readiness)": [
        f"worker_service/guest_agent/{name}.py" for name in ("report", "readiness")
    ],
}
"""Pure code: title -> patterns of files."""

TESTS: Final = (
    "tests/unit/master/planning",
    "tests/unit/master/policy",
    "tests/unit/worker/contract",
    "tests/unit/worker/console",
    "tests/unit/worker/state",
    "tests/unit/worker/transfer",
    "tests/unit/worker/hypervisor/test_kvm_xml.py",
    "tests/unit/worker/hypervisor/test_xen_xml.py",
    "tests/unit/worker/hypervisor/test_xen_messages.py",
    "tests/unit/worker/hypervisor/test_vbox_xml.py",
    "tests/unit/worker/guest_agent/test_report.py",
)
"""The folders that mirror those of the pure code. Consoles and transfers use the contract's patterns and addresses."""

OPTIONS: Final = ("--ignore", "tests/unit/master/planning/test_convergence.py", "--hypothesis-seed", "0")
"""Without chance: a line that only a random example reaches has no test."""


def main() -> int:
    """Run the tests of the pure code, print the coverage of each folder, and return 1 unless all of it is 100 %."""
    patterns = [str(REPO / pattern) for group in PURE.values() for pattern in group]
    measured = coverage.Coverage(data_file=None, config_file=False, branch=True, include=patterns)
    with measured.collect():
        tested = pytest.main(["-q", "-n0", "--sandbox", "none", "--no-header", *OPTIONS, *TESTS])
    if tested != pytest.ExitCode.OK:
        return int(tested)
    return max([_report(measured, title, patterns) for title, patterns in PURE.items()])


def _report(measured: coverage.Coverage, title: str, patterns: list[str]) -> int:
    """Print one line for a folder, and the missing lines and branches of its files. Return 1 below 100 %."""
    table = StringIO()
    include = [str(REPO / pattern) for pattern in patterns]
    percent = measured.report(include=include, file=table, show_missing=True, skip_covered=True)
    print(f"{percent:6.1f} %  {title}")  # noqa: T201
    if percent < 100:
        print(table.getvalue())  # noqa: T201
    return int(percent < 100)


if __name__ == "__main__":
    sys.exit(main())
