"""The verbs of the development stack, run as processes."""

import os
import signal
import subprocess
import sys

from devstack.layout import REPO

TOOL = """#!/bin/sh
trap 'sleep 2; echo tidied up; exit 7' INT
echo at work
while :; do sleep 0.1; done
"""


def test_tool_that_is_interrupted_may_tidy_up(tmp_path):
    """Tests end their VMs and their parts of a stack, and their caller waits for that."""
    (tmp_path / "tool").write_text(TOOL)
    (tmp_path / "tool").chmod(0o755)
    code = (
        "import pathlib, sys; from devstack import __main__ as main; "
        f"main.PYTHON = pathlib.Path({str(tmp_path / 'python')!r}); sys.exit(main._tool('tool'))"
    )
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, cwd=REPO, stdout=subprocess.PIPE, text=True, start_new_session=True) as running:
        assert running.stdout.readline() == "at work\n"
        os.killpg(running.pid, signal.SIGINT)
        assert running.stdout.read() == "tidied up\n"
    assert running.returncode == 7
