"""A Debian host with its own systemd in a container: installed and started software stays inside.

systemd-nspawn boots it, on a machine that may itself run without systemd. It shares the machine's network to install
packages, so its services need ports of their own. It needs root.
"""

import os
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path

from devstack import process
from devstack.guests import mmdebstrap
from devstack.guests.tools import run

PACKAGES = ("ca-certificates", "dbus", "python3-venv", "systemd-sysv")
"""The packages that a new Debian has and that are needed here."""

_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
_OWN_WAYS = ("PIP_CERT", "PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "SSL_CERT_FILE", "http_proxy", "https_proxy")
"""Variables by which this machine says how its package clients reach their registries."""


class Container:
    """One host. `binds` are folders of this machine that it sees read-only, by the name that they have there."""

    def __init__(self, folder: Path, binds: Mapping[str, Path]) -> None:
        self.root = folder / "root"
        self.log = folder / "container.log"
        self._binds = [f"--bind-ro={source}:{name}" for name, source in binds.items()]
        self._started: process.Identity | None = None
        self._install()

    def _install(self) -> None:
        sources = self.root.with_name("sources.list")
        sources.write_text(mmdebstrap.apt_sources(self.log))
        options = ["--variant=minbase", *mmdebstrap.apt_options(self.log)]
        run(mmdebstrap.command(self.root, sources, PACKAGES, *options), log=self.log)
        # Its package clients trust whom this machine trusts.
        shutil.copy(_CERTIFICATES, self.root / "etc/ssl/certs" / _CERTIFICATES.name)

    def boot(self) -> None:
        """Start its systemd, and wait until systemd reports that the host is up."""
        argv = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", f"--directory={self.root}"]
        self._started = process.spawn([*argv, *self._binds], log=self.log, cwd=self.root.parent)
        deadline = time.monotonic() + 120
        while self.run("systemctl", "is-system-running", check=False).stdout.strip() != "running":
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.5)

    def run(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on it, as root with a bare environment."""
        own = [f"{name}={os.environ[name]}" for name in _OWN_WAYS if name in os.environ]
        environment = ["env", "-C", "/", "-i", "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", *own]
        enter = ["nsenter", "--target", str(self.init), "--mount", "--uts", "--ipc", "--pid", "--cgroup", "--root"]
        done = subprocess.run([*enter, *environment, *argv], check=False, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{argv}: {done.stdout[-3000:]}\n{done.stderr[-3000:]}"
        return done

    @property
    def init(self) -> int:
        """The pid of its systemd on this machine, or 0."""
        assert self._started is not None
        children = Path(f"/proc/{self._started.pid}/task/{self._started.pid}/children").read_text().split()
        return int(children[0]) if children else 0

    def stop(self) -> None:
        """Switch it off."""
        if self._started is not None:
            process.end(self._started, self.log)
