"""The agent, run by each shell of Debian, with package managers that are scripts on its PATH."""

import json
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.lib.support import eventually
from worker_service.contract import SoftwareState
from worker_service.guest_agent.report import fold, parse
from worker_service.guest_agent.seed_iso import AGENT

SHELLS = (("dash",), ("busybox", "sh"), ("bash", "--posix"))
TOOLS = [
    *("cat", "chmod", "cp", "cut", "grep", "head", "ls", "mkdir", "mktemp", "mv", "rm", "rmdir"),
    *("sed", "sleep", "sync", "tail", "tr", "touch", "wc"),
]

APT = {
    "apt-get": """
        echo "$*" >>"$BOX/calls"
        for word; do last=$word; done
        case " $* " in
        *" update "*) try=$(cat "$BOX/offline" 2>/dev/null || echo 0)
            [ "$try" -eq 0 ] || { echo $((try - 1)) >"$BOX/offline"
                echo "Could not resolve 'mirror'"; exit 100; } ;;
        *" install "*) package=${last%%=*}
            [ -e "$BOX/archive/$package" ] || { echo "Reading lists..."
                echo "E: Unable to locate package $last"; exit 100; }
            [ ! -e "$BOX/broken" ] || { rm "$BOX/broken"; echo 'E: "x\\y"	connection reset'; exit 100; }
            cp "$BOX/archive/$package" "$BOX/installed/$package" ;;
        esac""",
    "dpkg": "exit 0",
    "dpkg-query": """
        for last; do :; done
        [ -e "$BOX/installed/$last" ] || exit 1
        echo "install ok installed $(cat "$BOX/installed/$last")" """,
}
RPM = """
    for last; do :; done
    [ -e "$BOX/installed/$last" ] || { echo "package $last is not installed"; exit 1; }
    cat "$BOX/installed/$last" """
DNF = {
    "dnf": """
        echo "$*" >>"$BOX/calls"
        [ "$2" = install ] || exit 0
        package=${3%%-[0-9]*}
        [ -e "$BOX/archive/$package" ] || { echo "Error: Unable to find a match: $3"; exit 1; }
        cp "$BOX/archive/$package" "$BOX/installed/" """,
    "rpm": RPM,
}
ZYPPER = {
    "zypper": """
        echo "$*" >>"$BOX/calls"
        [ "$2" = install ] || exit 0
        package=${4%%=*}
        [ -e "$BOX/archive/$package" ] || { echo "'$4' not found in package names. Trying capabilities."; exit 104; }
        cp "$BOX/archive/$package" "$BOX/installed/" """,
    "rpm": RPM,
}
PACMAN = {
    "pacman": """
        echo "$*" >>"$BOX/calls"
        for last; do :; done
        [ "$1" = -Q ] || [ ! -e "$BOX/db.lck" ] || {
            echo "error: failed to synchronize all databases (unable to lock database)"; exit 1; }
        case $1 in
        -Q) [ -e "$BOX/installed/$last" ] && echo "$last $(cat "$BOX/installed/$last")" ;;
        -S) [ -e "$BOX/archive/$last" ] || { echo "error: target not found: $last"; exit 1; }
            cp "$BOX/archive/$last" "$BOX/installed/" ;;
        esac""",
    "pacman-conf": 'echo "$BOX/"',
}
APK = {
    "apk": """
        echo "$*" >>"$BOX/calls"
        for last; do :; done
        package=${last%%=*}
        case $1 in
        info) [ -e "$BOX/installed/$package" ] && echo "$package-$(cat "$BOX/installed/$package")" ;;
        add) [ -e "$BOX/archive/$package" ] || { echo "ERROR: unable to select packages:"
            echo "  $package (no such package):"; exit 1; }
            cp "$BOX/archive/$package" "$BOX/installed/" ;;
        esac"""
}
MANAGERS = {"apt-get": APT, "dnf": DNF, "zypper": ZYPPER, "pacman": PACMAN, "apk": APK}
WITH_VERSION = {
    "apt-get": "install nginx=1.22*",
    "dnf": "-y install nginx-1.22*",
    "zypper": "--non-interactive install --auto-agree-with-licenses nginx",
    "pacman": "-S --noconfirm --needed nginx",
    "apk": "add nginx=~1.22",
}


class Box:
    """A guest without a machine: an empty PATH but for a few tools and a package manager of the test's."""

    def __init__(self, folder, manager="apt-get", archive=()):
        self.folder, self.port, self.state = folder, folder / "port", folder / "state"
        for name in ("bin", "archive", "installed", "state"):
            (folder / name).mkdir()
        self.port.touch()
        for tool in TOOLS:
            (folder / "bin" / tool).symlink_to(shutil.which(tool))
        for name, text in MANAGERS.get(manager, {}).items():
            script = folder / "bin" / name
            script.write_text(f"#!/bin/dash\n{text}\n")
            script.chmod(0o755)
        for name, version in archive:
            (folder / "archive" / name).write_text(version)
        # The agent adds the usual folders to its PATH: a machine that has apt must not be asked.
        text = AGENT.read_text().replace("PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin\n", "")
        # And Debian's busybox takes its own dpkg for any other, which is no dpkg.
        text = text.replace("dpkg --", '"$BOX/bin/dpkg" --')
        self.agent = folder / "agent.sh"
        self.agent.write_text(text)

    def run(self, shell, *entries, **more):
        if entries:
            self.state.mkdir(exist_ok=True)
            (self.state / "soft_list").write_text("".join(f"{entry}\n" for entry in entries))
        argv = [str(Path(shutil.which(shell[0])).resolve()), *shell[1:], str(self.agent)]
        environment = {
            "PATH": str(self.folder / "bin"),
            "BOX": str(self.folder),
            "TMPDIR": str(self.folder),
            "SALTERN_AGENT_PORT": str(self.port),
            "SALTERN_AGENT_STATE": str(self.state),
            "SALTERN_AGENT_LOCK": str(self.folder / "lock"),
            "SALTERN_AGENT_SEEDS": "",
            "SALTERN_AGENT_UNIT_S": "0",
            **more,
        }
        done = subprocess.run(argv, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.stderr == ""
        return fold(entries, parse(self.port.read_bytes()))

    @property
    def events(self):
        return [(event.event, event.name) for event in parse(self.port.read_bytes())]

    @property
    def calls(self):
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=SHELLS, ids=lambda shell: shell[0])
def shell(request):
    return request.param


@pytest.fixture(params=MANAGERS)
def manager(request, shell):
    if shell[0] == "busybox" and "rpm" in MANAGERS[request.param]:
        pytest.skip("Debian's busybox takes its own rpm for any other; no distribution with rpm has such a shell")
    return request.param


CHANNELS = {
    "virtio-serial before all": (
        ["vport1p1", "ttyS1"],
        {"class/virtio-ports/vport1p1/name": "org.saltern.agent.0", "class/dmi/id/product_name": "HVM domU",
         "class/tty/ttyS1/type": "4"},
        "vport1p1",
    ),
    "second serial port of Xen": (
        ["ttyS1", "hvc1"],
        {"class/dmi/id/product_name": "HVM domU", "class/tty/ttyS1/type": "4", "bus/xen/devices/console-1/x": ""},
        "ttyS1",
    ),
    "second serial port of VirtualBox": (
        ["ttyS1"], {"class/dmi/id/product_name": "VirtualBox", "class/tty/ttyS1/type": "4"}, "ttyS1"
    ),
    "second console of a guest without serial ports": (
        ["ttyS1", "hvc1"],
        {"class/dmi/id/product_name": "HVM domU", "class/tty/ttyS1/type": "0", "bus/xen/devices/console-1/x": ""},
        "hvc1",
    ),
    "serial port of somebody else": (
        ["ttyS1", "hvc1"], {"class/dmi/id/product_name": "KVM", "class/tty/ttyS1/type": "4"}, None
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CHANNELS)
def test_reports_to_the_first_channel(tmp_path, shell, case):
    devices, sys, used = CHANNELS[case]
    box, root = Box(tmp_path), tmp_path / "root"
    (root / "dev").mkdir(parents=True)
    masters = {}
    for name in devices:
        masters[name], slave = os.openpty()
        (root / "dev" / name).symlink_to(os.ttyname(slave))
    for name, content in sys.items():
        (root / "sys" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "sys" / name).write_text(f"{content}\n")
    box.run(shell, SALTERN_AGENT_PORT="", SALTERN_AGENT_ROOT=str(root))
    for name, master in masters.items():
        os.set_blocking(master, False)
        sent = b""
        with suppress(BlockingIOError):
            sent = os.read(master, 4096)
        assert [event.event for event in parse(sent)] == (["up", "done"] if name == used else [])


def test_installs_with_each_package_manager(tmp_path, shell, manager):
    box = Box(tmp_path, manager, [("nginx", "1.22.1-9"), ("git", "2.1")])
    report = box.run(shell, "git", "nginx=1.22*")
    assert report.done
    assert [(entry.state, entry.version) for entry in report.software] == [
        (SoftwareState.INSTALLED, "2.1"),
        (SoftwareState.INSTALLED, "1.22.1-9"),
    ]
    assert any(call.endswith(WITH_VERSION[manager]) for call in box.calls), box.calls
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith("tmp.")) == []
    assert not (tmp_path / "lock").exists()


def test_unknown_package_fails_with_the_managers_message(tmp_path, shell, manager):
    box = Box(tmp_path, manager, [("git", "2.1")])
    report = box.run(shell, "git", "no-such-thing", "never-tried")
    assert [entry.state for entry in report.software] == [
        SoftwareState.INSTALLED,
        SoftwareState.FAILED,
        SoftwareState.PENDING,
    ]
    assert "no-such-thing" in report.failed.tail
    assert not report.done


def test_another_version_than_requested_is_a_failure(tmp_path, shell, manager):
    report = Box(tmp_path, manager, [("nginx", "1.30-1")]).run(shell, "nginx=1.22*")
    assert "1.30-1" in report.failed.tail


def test_second_run_only_reports(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "2.1")])
    box.run(shell, "git")
    before = box.calls
    box.port.write_text("")
    report = box.run(shell, "git")
    assert report.done
    assert box.events == [("up", ""), ("installed", "git"), ("done", "")]
    assert box.calls == before


@pytest.mark.parametrize("desired", ["hold", "install", "deinstall"])
def test_package_that_is_held_is_installed(tmp_path, shell, desired):
    """dpkg prints the desired state first, then the present one."""
    box = Box(tmp_path)
    (tmp_path / "bin" / "dpkg-query").write_text(f'#!/bin/dash\necho "{desired} ok installed 1.22.1-9"\n')
    (entry,) = box.run(shell, "nginx=1.22*").software
    assert (entry.state, entry.version) == (SoftwareState.INSTALLED, "1.22.1-9")
    assert box.calls == []


@pytest.mark.parametrize("status", ["install ok half-configured", "deinstall ok config-files", "hold ok unpacked"])
def test_half_installed_package_is_installed_again(tmp_path, shell, status):
    box = Box(tmp_path)
    (tmp_path / "bin" / "dpkg-query").write_text(f'#!/bin/dash\necho "{status} 1.22.1-9"\n')
    assert "Unable to locate" in box.run(shell, "nginx").failed.tail
    assert any(" install " in call for call in box.calls)


def test_goes_on_where_it_was_cut_off(tmp_path, shell):
    box = Box(tmp_path, archive=[("a1", "1"), ("b1", "2")])
    (tmp_path / "installed" / "a1").write_text("1")
    box.port.write_bytes(b'{"event": "up"}\n{"event": "installing", "na')
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "pid").write_text("4194305")
    assert box.run(shell, "a1", "b1").done
    assert box.events == [
        ("up", ""), ("up", ""), ("installed", "a1"), ("installing", "b1"), ("installed", "b1"), ("done", ""),
    ]  # fmt: skip


def test_seed_files_are_synced_before_the_first_report(tmp_path, shell):
    """cloud-init writes it once, at the first boot, and does not sync it."""
    if shell[0] == "busybox":
        pytest.skip("it takes its own sync for any other")
    box = Box(tmp_path, archive=[("git", "1")])
    sync = tmp_path / "bin" / "sync"
    sync.unlink()
    sync.write_text('#!/bin/dash\ncat "$BOX/port" >>"$BOX/heard"\necho synced >>"$BOX/heard"\n')
    sync.chmod(0o755)
    assert box.run(shell, "git").done
    assert (tmp_path / "heard").read_text().startswith("synced")


def test_two_agents_do_not_work_at_once(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    (tmp_path / "lock").mkdir()
    (tmp_path / "lock" / "pid").write_text(str(os.getpid()))
    box.run(shell, "git")
    assert box.port.read_text() == ""


def test_waits_for_the_network(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    (tmp_path / "offline").write_text("4")
    assert box.run(shell, "git").done
    assert sum(" update" in call for call in box.calls) == 5


def test_missing_network_is_reported_with_its_error(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    (tmp_path / "offline").write_text("99")
    assert "Could not resolve 'mirror'" in box.run(shell, "git").failed.tail


def test_broken_download_is_tried_again(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    (tmp_path / "broken").touch()
    assert box.run(shell, "git").done


def test_lock_left_by_a_reset_is_removed(tmp_path, shell):
    box = Box(tmp_path, "pacman", archive=[("git", "1")])
    (tmp_path / "db.lck").touch()
    assert box.run(shell, "git").done


def test_lock_that_is_held_stays(tmp_path, shell):
    box = Box(tmp_path, "pacman", archive=[("git", "1")])
    with (tmp_path / "db.lck").open("w"):
        assert "unable to lock database" in box.run(shell, "git").failed.tail
    assert (tmp_path / "db.lck").exists()
    assert box.run(shell, "git").done


def test_virtual_package_is_installed(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    (tmp_path / "bin" / "apt-get").write_text("#!/bin/dash\nexit 0\n")
    (entry,) = box.run(shell, "mail-transport-agent").software
    assert (entry.state, entry.version) == (SoftwareState.INSTALLED, "")


@pytest.mark.parametrize("text", ['E: "quoted" \\back\\slash\ttab', "\x1b[31mred\x07", "für €", "%s %n $(id) `id`"])
def test_free_text_is_always_json(tmp_path, shell, text):
    box = Box(tmp_path)
    (tmp_path / "words").write_text("\n".join(f"{n} {text} {'x' * 500}" for n in range(200)))
    (tmp_path / "bin" / "apt-get").write_text('#!/bin/dash\ncat "$BOX/words"\nexit 1\n')
    box.run(shell, "git")
    failed = [json.loads(line) for line in box.port.read_bytes().splitlines() if b"failed" in line]
    assert len(failed) == 1
    assert len(failed[0]["tail"].splitlines()) == 20
    assert failed[0]["tail"].startswith("180 ")
    assert max(map(len, box.port.read_bytes().splitlines())) < 8192
    assert fold(["git"], parse(box.port.read_bytes())).failed


def still_running(box):
    """The processes that the agent started and left behind."""
    mark = f"BOX={box.folder}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append((entry / "cmdline").read_bytes())
    return found


def test_long_work_is_heard_of_as_long_as_it_says_new_things(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    slow = """
        case " $* " in *" install "*)
            while [ "$(grep -c working "$BOX/port")" -lt 2 ]; do echo "Get: more"; sleep 0.02; done
            cp "$BOX/archive/git" "$BOX/installed/git" ;;
        esac"""
    (tmp_path / "bin" / "apt-get").write_text(f"#!/bin/dash\n{slow}\n")
    report = box.run(shell, "git", SALTERN_AGENT_BEAT_S="0.2")
    assert report.done
    beats = [event.beat for event in parse(box.port.read_bytes()) if event.event == "working"]
    assert beats[:2] == [1, 2]
    assert box.events[1] == ("installing", "git")
    eventually(lambda: still_running(box) == [])


def test_silent_installation_sends_no_heartbeat(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    silent = 'case " $* " in *" install "*) sleep 0.5; cp "$BOX/archive/git" "$BOX/installed/git" ;; esac'
    (tmp_path / "bin" / "apt-get").write_text(f"#!/bin/dash\n{silent}\n")
    assert box.run(shell, "git", SALTERN_AGENT_BEAT_S="0.05").done
    assert "working" not in box.port.read_text()


def test_agent_leaves_no_processes(tmp_path, shell):
    box = Box(tmp_path, archive=[("git", "1")])
    assert box.run(shell, "git", SALTERN_AGENT_BEAT_S="3600").done
    eventually(lambda: still_running(box) == [])


def test_empty_list_is_done_when_up(tmp_path, shell):
    box = Box(tmp_path, manager="none")
    (tmp_path / "state").rmdir()
    box.run(shell)
    assert box.events == [("up", ""), ("done", "")]


def test_missing_package_manager_is_reported(tmp_path, shell):
    report = Box(tmp_path, manager="none").run(shell, "git")
    assert "no package manager" in report.failure


@pytest.mark.parametrize("entry", ["-rf", "$(touch pwned)", "a;b", "a b", "/etc/passwd", "a\\b"])
def test_agent_refuses_invalid_names(tmp_path, shell, entry):
    box = Box(tmp_path, archive=[("git", "1")])
    assert box.run(shell, entry).failure
    assert box.calls == []


def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", "--shell=sh", "--severity=style", AGENT], check=True)
