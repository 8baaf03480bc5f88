"""The sandbox of the tests: it leaves nothing on the machine, and a leftover of a test fails the run.

Each test starts sandboxes inside its own.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from devstack.layout import REPO
from tests.lib.sandbox import RUN, SCRIPT, command, outside, processes
from tests.lib.support import eventually

MARK = "of-this-test"
LEAVES = """
touch /var/tmp/saltern-left /var/log/libvirt/saltern-left
mkdir /run/left && mount -t tmpfs left /run/left
ip netns add left
setsid sleep 1000 &
exec python3 -c '
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
pathlib.Path(sys.argv[1]).touch()
signal.pause()' "$1"
"""
"""Leaves a file, a log, a mount, a network namespace and an orphan, says so in a file, and then hears no request."""

TESTS = {
    "process": "subprocess.Popen(['sleep', '1000'], start_new_session=True)",
    "file": "pathlib.Path('/var/tmp/saltern-left').touch()",
    "log": "(folder := pathlib.Path('/var/log/libvirt/qemu')).mkdir(); (folder / 'left.log').touch()",
    "mount": "subprocess.run(['mount', '-t', 'tmpfs', 'left', '/srv'], check=True)",
    "namespace": "subprocess.run(['ip', 'netns', 'add', 'left'], check=True)",
    "nothing": "pass",
}


def environment(**more):
    return {**os.environ, **more}


@pytest.fixture
def busy(tmp_path_factory):
    """A running sandbox, started by a process of its own."""
    # Below the clone: of all the folders that this process can write to, one that a sandbox does not cover.
    (REPO / "var").mkdir(exist_ok=True)
    ready = REPO / f"var/{tmp_path_factory.mktemp('ready').name}-{os.getpid()}"
    argv = command("/bin/sh", "-c", LEAVES, "sh", str(ready))
    starter = subprocess.Popen(
        [sys.executable, "-c", "import subprocess, sys; subprocess.run(sys.argv[1:])", *argv],
        env=environment(**{RUN: MARK}),
    )
    try:
        eventually(ready.exists)
        yield starter
    finally:
        ready.unlink(missing_ok=True)
        starter.kill()
        starter.wait()


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL, signal.SIGHUP])
def test_whatever_ends_its_starter_ends_all_of_it(busy, how):
    assert {"sleep 1000"} <= {words for _, words in processes(MARK)}
    others = outside("")
    busy.send_signal(how)
    busy.wait()
    eventually(lambda: not processes(MARK))
    assert outside(MARK) == others
    assert not Path("/run/left").exists()
    assert not Path("/run/netns/left").exists()
    assert "/run/left" not in Path("/proc/self/mountinfo").read_text()


def test_clone_below_a_covered_folder_stays_visible(tmp_path):
    (tmp_path / "here").write_text("seen")
    argv = ["/bin/sh", str(SCRIPT), str(tmp_path), "offline", "cat", "here"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "seen"), done.stderr


def pytest_run(folder, *options):
    """Run the tests of a folder as `make test` would, in a sandbox."""
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-p",
        "no:cacheprovider",
        *options,
        str(folder),
    ]
    outside_all = {name: value for name, value in os.environ.items() if name != RUN and "PYTEST" not in name}
    return subprocess.run(argv, cwd=REPO, env=outside_all, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("options", [("-n0",), ("-n2",)], ids=["one process", "two processes"])
def test_leftover_of_a_test_fails_the_run(options):
    folder = REPO / f"var/leaving-{os.getpid()}"
    folder.mkdir(parents=True, exist_ok=True)
    try:
        for name, leave in TESTS.items():
            (folder / f"test_{name}.py").write_text(f"import pathlib, subprocess\ndef test():\n    {leave}\n")
        done = pytest_run(folder, *options)
        assert done.returncode == 1, done.stdout + done.stderr
        assert f"{len(TESTS)} passed" in done.stdout
        said = done.stdout.partition("left behind by tests")[2]
        for words in ("sleep 1000", "file /var/tmp/saltern-left", "qemu/left.log", "mount /srv", "netns/left"):
            assert words in said, done.stdout
        clean = pytest_run(folder / "test_nothing.py", *options)
        assert (clean.returncode, "left behind" in clean.stdout) == (0, False), clean.stdout + clean.stderr
    finally:
        shutil.rmtree(folder)
