"""Tests that run in another pytest report here one by one, and a test whose pytest has ended fails."""

import subprocess
from types import SimpleNamespace

import pytest

from devstack.console import Trouble
from tests.lib import remote

TESTS = """
import os
import pytest

@pytest.mark.parametrize("n", [1, 2])
def test_good(n):
    print("printed")

def test_bad():
    assert 1 == 2

def test_end():
    os._exit(7)

def test_late():
    pass
"""


class Here:
    """This machine as a host."""

    def lines(self, argv):
        with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as child:
            yield from (line.rstrip("\n") for line in child.stdout)
        if child.returncode:
            raise Trouble(f"it failed with code {child.returncode}")


@pytest.fixture
def ran(tmp_path, request):
    """Return a function that runs a test over there, and returns the reports that came here."""
    file = tmp_path / "test_there.py"
    file.write_text(TESTS)
    names = ["test_good[1]", "test_good[2]", "test_bad", "test_end", "test_late"]
    far = remote.Remote(request.config, [f"{file}::{name}" for name in names], f"--rootdir={tmp_path}")
    far.start(Here())
    reports = []

    def log(report):
        reports.append(report)

    ignored = {f"pytest_runtest_log{end}": lambda **_: None for end in ("start", "finish")}
    ihook = SimpleNamespace(pytest_runtest_logreport=log, **ignored)

    def run(name):
        reports.clear()
        nodeid = f"{file.name}::{name}"
        far.run(SimpleNamespace(nodeid=nodeid, location=(str(file), 1, name), ihook=ihook))
        return list(reports)

    return run


def test_each_result_comes_with_its_phases_and_its_text(ran):
    for name in ("test_good[1]", "test_good[2]"):
        assert [(report.when, report.outcome) for report in ran(name)] == [
            ("setup", "passed"),
            ("call", "passed"),
            ("teardown", "passed"),
        ]
    (_, call, _) = ran("test_bad")
    assert (call.outcome, "assert 1 == 2" in call.longreprtext) == ("failed", True)
    setup, lost = ran("test_end")
    assert (setup.outcome, lost.outcome) == ("passed", "failed")
    assert "ended before this test did" in lost.longreprtext
    assert "code 7" in lost.longreprtext
    (late,) = ran("test_late")
    assert (late.outcome, late.when) == ("failed", "call")
