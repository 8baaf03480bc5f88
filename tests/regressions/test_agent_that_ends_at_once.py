"""Regression: an agent that ended right after its start left the `sleep` of its heartbeat running for a minute."""

import os
import re
import select
import shutil
import subprocess
from pathlib import Path

import pytest

from worker_service.guest_agent.seed_iso import AGENT

LIVES = 300
SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"))


@pytest.mark.parametrize("shell", SHELLS, ids=lambda shell: shell[0])
def test_heartbeat_ends_with_all_of_its_children(tmp_path, shell):
    beat = re.search(r"^beat\(\) \{.*?^\}$", AGENT.read_text(), re.DOTALL | re.MULTILINE)[0]
    script = tmp_path / "lives.sh"
    script.write_text(f"beat_s=60\n{beat}\nbeat </dev/null 2>/dev/null &\nkill $!\n")
    argv = [str(Path(shutil.which(shell[0])).resolve()), *shell[1:], str(script)]
    ours, theirs = os.pipe()
    with os.fdopen(ours, "rb") as ours, os.fdopen(theirs, "wb") as theirs:
        lives = [subprocess.Popen(argv, stdout=theirs) for _ in range(LIVES)]
        assert {life.wait(60) for life in lives} == {0}
        theirs.close()
        # Each process of these lives has the writing end; the reading end is at its end when all are gone.
        ended, _, _ = select.select([ours], [], [], 30)
        assert ended
