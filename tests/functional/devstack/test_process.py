"""Real processes: they are started, recognized, ended, and never confused with others."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from devstack import process
from devstack.process import Identity

SLEEPER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)",
]
FORKS_AT_ITS_END = [
    sys.executable,
    "-c",
    (
        "import os, signal, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: os.fork() and os._exit(0))\n"
        "print('up', flush=True)\n"
        "while True: time.sleep(600)"
    ),
]
PARENT = [
    sys.executable,
    "-c",
    "import os, time; os.fork(); print(os.getpid(), flush=True); time.sleep(600)",
]


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log/part.log"


@pytest.fixture
def spawn(tmp_path, log):
    started = []

    def start(argv, lines=1):
        one = process.spawn(argv, log=log, cwd=tmp_path)
        started.append(one)
        deadline = time.monotonic() + 60
        while log.read_text().count("\n") < lines and time.monotonic() < deadline:
            time.sleep(0.01)
        return one

    yield start
    for one in started:
        process.end(one, log, grace_s=0)


def test_process_runs_in_its_own_session_and_logs(spawn, log):
    one = spawn(SLEEPER)
    assert one.alive
    assert os.getsid(one.pid) == one.pid
    assert log.read_text() == "up\n"


def test_process_ends_at_sigterm(spawn, log):
    one = spawn(SLEEPER)
    assert process.end(one, log)
    assert not one.alive
    assert not process.end(one, log)


def test_process_that_ignores_sigterm_is_killed(spawn, log):
    one = spawn(STUBBORN)
    begun = time.monotonic()
    assert process.end(one, log, grace_s=0.3)
    assert not one.alive
    assert time.monotonic() - begun < 300  # else it slept on for 600


def test_children_end_with_their_process(spawn, log):
    leader = spawn(PARENT, lines=2)
    family = process.family(leader, log)
    assert len(family) == 2
    process.end(leader, log, grace_s=0)
    assert [one for one in family if one.alive] == []


def test_child_that_is_forked_at_the_end_ends_too(spawn, log):
    """As a minion does that gets a job while it is being stopped."""
    leader = spawn(FORKS_AT_ITS_END)
    assert process.end(leader, log)
    assert process.family(leader, log) == []


def test_children_that_a_crash_left_behind_are_found(spawn, log):
    leader = spawn(PARENT, lines=2)
    os.kill(leader.pid, signal.SIGKILL)
    assert process.wait_gone(leader, 60)
    (orphan,) = process.family(leader, log)
    assert process.family(leader, log.with_name("other.log")) == []
    assert process.end(leader, log)
    assert not orphan.alive


@pytest.mark.parametrize("change", [{"start": 1}, {"boot": "another boot"}])
def test_recycled_pid_is_never_signalled(spawn, log, change):
    other = spawn(SLEEPER)
    recorded = dataclasses.replace(other, **change)
    assert not recorded.alive
    assert not process.end(recorded, log, grace_s=0)
    assert other.alive


def test_zombie_is_not_alive():
    child = subprocess.Popen(["true"])
    one = Identity(child.pid, 0, process.boot_id())
    deadline = time.monotonic() + 60
    while process.identify(child.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert process.identify(one.pid) is None
    child.wait()


def test_identity_survives_a_file(spawn, tmp_path):
    one = spawn(SLEEPER)
    process.remember(tmp_path / "run/part.json", one)
    assert process.recall(tmp_path / "run/part.json") == one


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_unreadable_record_is_no_process(tmp_path, text):
    (tmp_path / "part.json").write_text(text)
    assert process.recall(tmp_path / "part.json") is None
    assert process.recall(tmp_path / "missing.json") is None
