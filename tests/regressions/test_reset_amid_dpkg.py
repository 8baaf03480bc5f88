"""Regression: a guest that was reset while dpkg ran never got its software, because dpkg missed files.

It runs the agent with the real apt and dpkg, on a root folder and a mirror of the test.
"""

import os
import subprocess

import pytest

from tests.lib.support import sha256
from worker_service.guest_agent.report import fold, parse
from worker_service.guest_agent.seed_iso import AGENT

DPKG = "var/lib/dpkg"


class Guest:
    """Another root for apt and dpkg, and a mirror that has `tool`, which needs `library`, and `other`."""

    def __init__(self, folder):
        self.folder, self.mirror, self.root, self.state = folder, folder / "mirror", folder / "root", folder / "state"
        for name in ("state", "mirror", f"root/{DPKG}/updates", f"root/{DPKG}/info", "root/var/lib/apt/lists/partial"):
            (folder / name).mkdir(parents=True)
        for name in ("cache/apt/archives/partial", "log/apt"):
            (self.root / "var" / name).mkdir(parents=True)
        (self.root / "etc/apt/apt.conf.d").mkdir(parents=True)
        (self.root / DPKG / "status").touch()
        (self.root / "etc/apt/sources.list").write_text(f"deb [trusted=yes] file:{self.mirror} ./\n")
        (folder / "apt.conf").write_text(
            f'Dir "{self.root}";\nDir::State::status "{self.root}/{DPKG}/status";\nDir::Bin::methods '
            '"/usr/lib/apt/methods";\nDir::Bin::dpkg "/usr/bin/dpkg";\nAPT::Sandbox::User "root";\n'
        )
        self.environment = {
            **os.environ,
            "APT_CONFIG": str(folder / "apt.conf"),
            "DPKG_ROOT": str(self.root),
            "DPKG_ADMINDIR": str(self.root / DPKG),
        }
        assert self.packages == {}  # or it would be the host's own dpkg
        self.publish("library")
        self.publish("tool", "Depends: library\n")
        self.publish("other")

    def publish(self, name, more=""):
        control = f"Package: {name}\nVersion: 1.0\nArchitecture: all\nMaintainer: me <me@host>\n{more}Description: x\n"
        tree, package = self.folder / name, self.mirror / f"{name}.deb"
        (tree / "DEBIAN").mkdir(parents=True)
        (tree / "DEBIAN/control").write_text(control)
        (tree / "usr/share").mkdir(parents=True)
        (tree / "usr/share" / name).write_text(name)
        subprocess.run(["dpkg-deb", "-b", tree, package], check=True, capture_output=True)
        entry = f"Filename: ./{name}.deb\nSize: {package.stat().st_size}\nSHA256: {sha256(package)}\n"
        with (self.mirror / "Packages").open("a") as index:
            index.write(f"{control}{entry}\n")

    def run(self, *command):
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120, check=False)
        return done.stdout + done.stderr

    def unpack(self, name):
        assert f"Unpacking {name}" in self.run("dpkg", "--unpack", self.mirror / f"{name}.deb")

    def tear(self, name):
        """The files that dpkg writes before it touches a package's files, and removes at the end."""
        self.unpack(name)
        status = self.root / DPKG / "status"
        torn = status.read_text().replace("Status: install ok unpacked", "Status: install reinstreq half-installed")
        status.write_text(torn)

    def install(self, *entries):
        (self.state / "soft_list").write_text("".join(f"{entry}\n" for entry in entries))
        port = self.folder / "port"
        self.environment |= {
            "SALTERN_AGENT_PORT": str(port),
            "SALTERN_AGENT_STATE": str(self.state),
            "SALTERN_AGENT_LOCK": str(self.folder / "lock"),
            "SALTERN_AGENT_SEEDS": "",
            "SALTERN_AGENT_UNIT_S": "0",
        }
        self.run("sh", AGENT)
        return fold(entries, parse(port.read_bytes()))

    @property
    def packages(self):
        states = self.run("dpkg-query", "-W", "-f", "${Package} ${Status}\\n")
        return dict(line.split(" ", 1) for line in states.splitlines())


@pytest.fixture
def guest(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("dpkg works for root alone")
    return Guest(tmp_path)


WHOLE = "install ok installed"


def test_reset_before_dependencies_were_unpacked(guest):
    guest.unpack("tool")
    assert guest.install("tool").done
    assert guest.packages == {"tool": WHOLE, "library": WHOLE}


@pytest.mark.parametrize("name", ["tool", "library", "other"])
def test_reset_while_unpacking_a_package(guest, name):
    guest.tear(name)
    report = guest.install("tool")
    assert [(entry.state, entry.version) for entry in report.software] == [("installed", "1.0")]
    assert guest.packages == {name: WHOLE, "tool": WHOLE, "library": WHOLE}


@pytest.mark.parametrize("how", ["unpack", "tear"])
def test_reset_with_all_listed_packages_unpacked(guest, how):
    """An interrupted agent leaves a mark. Then dpkg has unfinished work that no entry of the list needs."""
    assert guest.install("library").done
    guest.state.mkdir()
    (guest.state / "begun").touch()
    getattr(guest, how)("other")
    assert guest.install("library").done
    assert guest.packages == {"library": WHOLE, "other": WHOLE}
