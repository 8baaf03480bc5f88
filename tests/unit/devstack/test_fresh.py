"""`make test-fresh`: the commands that it runs in a bare Debian, and their environment."""

import os
import shlex
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from devstack import fresh
from devstack.console import Trouble
from devstack.fresh import Done
from devstack.layout import REPO, Layout, Ports, bound

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root may make namespaces")


@pytest.mark.parametrize(
    ("arguments", "keep", "rest"),
    [
        ([], False, []),
        (["--keep"], True, []),
        (["-x", "--keep", "tests/unit"], True, ["-x", "tests/unit"]),
        (["-k", "a b"], False, ["-k", "a b"]),
    ],
)
def test_own_options_are_split_from_other_arguments(arguments, keep, rest):
    assert fresh.split(arguments) == (keep, rest)


@pytest.mark.parametrize(
    ("arguments", "test"),
    [
        ([], ["make", "test"]),
        (["tests/unit", "-x"], ["make", "test", "ARGS=tests/unit -x"]),
        (["-k", "a or b"], ["make", "test", "ARGS=-k 'a or b'"]),
        (["-k", "$x"], ["make", "test", "ARGS=-k '$$x'"]),
    ],
)
def test_commands_are_the_readmes(arguments, test):
    planned = fresh.commands(arguments)
    assert list(planned) == ["run", "test", "stop"]  # in this order
    assert planned["run"] == ["python3", "-m", "devstack", "run"]  # there is no make yet
    assert planned["test"] == test


@pytest.mark.parametrize(
    ("outer", "there"),
    [
        ({}, {}),
        ({"HOME": "/home/x", "PYTHONPATH": "/x", "CI": "true"}, {}),
        ({"PIP_INDEX_URL": "https://pypi.example/simple"}, {"PIP_INDEX_URL": "https://pypi.example/simple"}),
        ({"PIP_CERT": "/opt/corp.pem"}, {"PIP_CERT": "/etc/ssl/certs/ca-certificates.crt"}),
        ({"PIP_FIND_LINKS": "/opt/wheels"}, {}),  # files of this machine
    ],
)
def test_environment(outer, there):
    assert fresh.environment(outer) == there


def test_command_has_only_the_given_environment():
    argv = fresh.inside({"PIP_DEFAULT_TIMEOUT": "9", "LANG": "C"}, ["make", "test"])
    assert argv[:4] == ["/usr/bin/env", "-C", fresh.CLONE, "-i"]
    assert argv[5:] == ["HOME=/root", "PIP_DEFAULT_TIMEOUT=9", "make", "test"]


def test_debian_root_has_the_packages_of_the_readme(tmp_path, monkeypatch):
    def run(argv, **_):
        raise Trouble(shlex.join(argv))

    monkeypatch.setattr(fresh.bootstrap, "run", run)
    monkeypatch.setattr(fresh.mmdebstrap, "apt_sources", lambda _: "")
    monkeypatch.setattr(fresh.mmdebstrap, "apt_options", lambda _: ["--aptopt=x"])
    with pytest.raises(Trouble, match=r"nsenter --target 7 .* --variant=minbase --aptopt=x --include=python3,git,ca-"):
        fresh.make_root(7, tmp_path / "root", tmp_path / "log")


@pytest.mark.parametrize(
    ("kind", "mode", "numbers", "command"),
    [
        (stat.S_IFCHR, 0o666, (1, 3), "mknod -m 666 dev/a c 1 3"),
        (stat.S_IFCHR, 0o600, (10, 200), "mknod -m 600 dev/a c 10 200"),
        (stat.S_IFBLK, 0o660, (7, 1), "mknod -m 660 dev/a b 7 1"),
    ],
)
def test_node(kind, mode, numbers, command):
    status = os.stat_result((kind | mode, *[0] * 9), {"st_rdev": os.makedev(*numbers)})
    assert fresh.node("a", status) == command


def test_devices_are_those_requested_and_present(tmp_path):
    for name in ("null", "loop0", "loop12", "loop-control", "net/tun", "sda", "ptmx", "pts/0", "loopy"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [name for name, _ in fresh.devices(tmp_path)]
    assert found == ["loop-control", "loop0", "loop12", "net/tun", "null"]


def test_machines_devices_are_not_in_it():
    program = fresh.furnish(Path("/x y/root"), fresh.devices(Path("/dev")))
    assert "mknod -m 666 dev/null c 1 3\n" in program
    assert "/dev " not in program.replace("dev/", "")
    assert [line for line in program.splitlines() if "--bind" in line] == ["mount --bind '/x y/root' '/x y/root'"]
    assert subprocess.run(["sh", "-n"], input=program, text=True, check=False).returncode == 0


def entered(**codes):
    """Makes commands of names, which end with the codes."""
    return lambda argv: ["sh", "-c", f"echo said by {argv[0]}; exit {codes.get(argv[0], 0)}"]


NAMES = {name: [name] for name in ("run", "test", "stop")}


@pytest.mark.parametrize(
    ("codes", "passed"),
    [
        ({}, [True, True, True]),
        ({"run": 1}, [False]),
        ({"test": 2}, [True, False, True]),
        ({"stop": 1}, [True, True, False]),
    ],
)
def test_run_commands(tmp_path, codes, passed):
    results = fresh.run_commands(NAMES, entered(**codes), tmp_path / "log")
    assert [one.passed for one in results] == passed
    assert [one.name for one in results] == ["run", "test", "stop"][: len(passed)]


def test_failure_shows_the_end_of_the_output(tmp_path, capsys):
    fresh.run_commands({"test": ["test"]}, entered(test=1), tmp_path / "log")
    assert "  | said by test\n" in capsys.readouterr().out


def test_failure_of_an_earlier_step_shows_its_output(tmp_path, capsys):
    log = tmp_path / "log"
    log.write_text("no mirror\n")
    with pytest.raises(Trouble, match="failed"), fresh.showing(log):
        raise Trouble("mmdebstrap failed")
    assert capsys.readouterr().out == "  | no mirror\n"


@pytest.mark.parametrize(
    ("results", "line"),
    [
        ([Done("run", 214.4, passed=True), Done("test", 700, passed=True)], "run: 214 s, test: 700 s"),
        ([Done("run", 9.6, passed=False)], "run: 10 s (failed)"),
    ],
)
def test_summary_is_one_line(results, line):
    assert fresh.summary(results) == line


def test_tail_is_short():
    assert fresh.tail("a\nb\n\n") == ["  | a", "  | b"]
    assert fresh.tail("x\n" * 300) == ["  | x"] * 30


def test_taken_ports_are_those_with_a_listener():
    with bound() as listening:
        listening.listen()
        port = listening.getsockname()[1]
        ports = Ports.free()
        assert fresh.taken_ports(ports) == []
        assert fresh.taken_ports(Ports(*[port] * 8)) == [port] * 8


def test_taken_port_is_reported_before_any_work(tmp_path, monkeypatch):
    monkeypatch.setattr(fresh, "taken_ports", lambda _: [8080, 4505])
    monkeypatch.setattr(fresh.os, "geteuid", lambda: 0)
    monkeypatch.setattr(fresh.bootstrap, "install_packages", lambda _: pytest.fail("done"))
    with pytest.raises(Trouble, match="8080, 4505"):
        fresh.test_fresh(Layout(var=tmp_path), [])


@needs_root
def test_all_that_was_started_in_the_namespaces_ends_with_them(tmp_path):
    with fresh.namespaces() as init:
        subprocess.run(fresh.enter(init, ["mount", "-t", "tmpfs", "x", str(tmp_path)]), check=True)
        started = f"setsid sleep 1000 & echo here >{tmp_path}/a"
        subprocess.run(fresh.enter(init, ["sh", "-c", started]), check=True)
        children = Path(f"/proc/{init}/task/{init}/children")
        deadline = time.monotonic() + 30
        while len(pids := children.read_text().split()) < 2:  # `cat`, and what lost its parent
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert not (tmp_path / "a").exists()
    assert not [pid for pid in (str(init), *pids) if Path("/proc", pid).exists()]


@needs_root
def test_killed_run_leaves_nothing_behind():
    program = "from devstack import fresh\nwith fresh.namespaces() as init: print(init, flush=True); input()"
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as one:
        init = one.stdout.readline().strip()
        assert Path("/proc", init).exists()
        one.kill()
    deadline = time.monotonic() + 30
    while Path("/proc", init, "exe").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@needs_root
def test_interrupt_ends_them_as_well():
    with pytest.raises(KeyboardInterrupt), fresh.namespaces() as init:
        raise KeyboardInterrupt
    assert not Path(f"/proc/{init}").exists()
