"""A plugin for pytest in an emulated host: it writes each report as a line, for `remote` on the machine outside."""

import json
import os
from typing import Final

import pytest

MARK: Final = "saltern-report "
# pytest takes standard output for itself once it has loaded its plugins.
_out = os.fdopen(os.dup(1), "w", buffering=1)


class Reports:
    """Writes the reports of one pytest."""

    def __init__(self, config: pytest.Config) -> None:
        """Take the configuration, whose hook makes reports into plain data."""
        self._config = config

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the report of one phase of a test."""
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        _out.write(f"{MARK}{json.dumps(data)}\n")

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        """Write that a test has ended."""
        _out.write(f"{MARK}{json.dumps(nodeid)}\n")


def pytest_configure(config: pytest.Config) -> None:
    """Begin to write reports."""
    config.pluginmanager.register(Reports(config))
