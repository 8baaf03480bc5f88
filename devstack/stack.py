"""The parts of one stack: which they are, how each is started, when it is healthy, how it is stopped.

`make run` and the integration tests use this same class, each with its own Layout.
"""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Final

from devstack import config, health, http, process
from devstack.console import Ticker, Trouble, tell
from devstack.health import Health
from devstack.layout import PYTHON, REPO, Layout

LIBVIRT_URI: Final = "qemu:///system"
_DEADLINE_S: Final = 90.0
_POLL_S: Final = 0.2
_ANSWER_S: Final = 60.0
"""Some verbs of the master block until they are done."""
_wave: Final = attrgetter("wave")


@dataclass(frozen=True)
class Part:
    """One daemon. Parts of one wave start together, when all of the waves before are healthy.

    `shared`: the machine's own; used where it runs already, and then never stopped by us.
    """

    name: str
    argv: tuple[str, ...]
    healthy: Health
    ports: tuple[int, ...] = ()
    wave: int = 1
    shared: bool = False
    grace_s: float = 10.0


def parts_of(layout: Layout) -> tuple[Part, ...]:
    """Every part, in the order in which they are started."""
    ports, binaries, conf = layout.ports, PYTHON.parent, str(layout.salt)
    return (
        Part("virtlogd", ("/usr/sbin/virtlogd",), health.unix(health.VIRTLOGD_SOCKET), wave=0, shared=True),
        Part("libvirtd", ("/usr/sbin/libvirtd",), health.libvirt(LIBVIRT_URI), wave=0, shared=True),
        Part(
            "salt-master",
            (f"{binaries}/salt-master", "-c", conf),
            health.tcp(ports.request),
            (ports.publish, ports.request),
        ),
        Part("salt-api", (f"{binaries}/salt-api", "-c", conf), health.salt_api(layout), (ports.api,)),
        # Last: a minion that finds no master waits for many seconds before it asks again.
        Part("minion", (f"{binaries}/salt-minion", "-c", conf), health.minion(layout), wave=2),
        Part(
            "worker-api",
            (str(PYTHON), "-m", "worker_service.api", "--settings", str(layout.worker_toml)),
            health.get(f"{layout.worker_url}/healthz"),
            (ports.worker,),
        ),
        Part(
            "master",
            (str(PYTHON), "-m", "master_service", "--settings", str(layout.master_toml), "serve"),
            health.get(f"{layout.master_url}/readyz"),
            (ports.master,),
            wave=3,  # ready once a worker has answered, and it asks at once when it starts
        ),
    )


class Stack:
    """All parts of one layout. Nothing is kept in memory: any process may start, look at and stop the same stack."""

    def __init__(
        self,
        layout: Layout,
        *,
        parts: Iterable[Part] | None = None,
        tell: Callable[[str], None] = tell,
    ) -> None:
        self.layout = layout
        self.parts: Final = {part.name: part for part in (parts_of(layout) if parts is None else parts)}
        self._tell = tell

    def api(self, method: str, path: str, body: object = None) -> http.Reply:
        """A request to the master service as its admin; `path` begins with /. Raises OSError if nobody answers."""
        headers = http.bearer(self.layout.admin_token)
        return http.call(method, self.layout.master_url + path, body=body, headers=headers, timeout_s=_ANSWER_S)

    def worker_api(self, method: str, path: str, body: object = None) -> http.Reply:
        """A request to the worker facade with its token; `path` begins with /. Raises OSError if nobody answers."""
        headers = http.bearer(self.layout.worker_token)
        return http.call(method, self.layout.worker_url + path, body=body, headers=headers, timeout_s=_ANSWER_S)

    def start(self, names: Iterable[str] | None = None) -> list[str]:
        """Start what does not run, wait until all of it is healthy. Returns what was started. Raises Trouble."""
        config.prepare(self.layout)
        share_kvm()
        chosen = [part for part in self.parts.values() if names is None or part.name in names]
        self._demand_ports(chosen)
        started: list[str] = []
        for _, group in groupby(sorted(chosen, key=_wave), key=_wave):
            parts = list(group)
            started += [part.name for part in parts if self._spawn(part)]
            for part in parts:
                self._await(part, started=part.name in started)
        return started

    def _demand_ports(self, parts: Iterable[Part]) -> None:
        """Raise Trouble for a port that somebody else has, before anything is started and left behind."""
        for part in parts:
            if not part.ports or self.running(part.name):
                continue
            self._end(part, grace_s=0)  # children that a crash of their first process left behind
            if taken := [port for port in part.ports if not health.tcp(port)(health.PATIENT_S)]:
                raise Trouble(
                    f"Port {taken[0]}, which {part.name} needs, is used by another program: "
                    f"find it with `ss -ltnp sport = :{taken[0]}`, stop it, and run this again.",
                )

    def start_part(self, name: str) -> None:
        """Start one part and wait until it is healthy; nothing to do if it is."""
        self.start([name])

    def kill(self, name: str) -> bool:
        """End one part as a crash would: SIGKILL to all of its processes. True if it ran."""
        return self._end(self.parts[name], grace_s=0)

    def stop(self) -> list[str]:
        """Stop what `start` started and what still runs of it; nothing else. Returns what was stopped."""
        own = [part for part in self.parts.values() if not part.shared]
        with ThreadPoolExecutor(len(own)) as pool:
            ended = list(pool.map(lambda part: self._end(part, part.grace_s), own))
        stopped = [part.name for part, was_alive in zip(own, ended, strict=True) if was_alive]
        shared = [part for part in reversed(self.parts.values()) if part.shared and self.running(part.name)]
        if shared and (domains := running_domains()):
            self._tell(
                f"libvirt stays: other virtual machines run on it ({', '.join(domains)}); "
                "end them (`virsh shutdown NAME`), then `make stop` again, if it is to stop as well."
            )
            return stopped
        return stopped + [part.name for part in shared if self._end(part, part.grace_s)]

    def running(self, name: str) -> process.Identity | None:
        """The process of a part that this stack started, if it lives."""
        found = process.recall(self.layout.identity(name))
        return found if found and found.alive else None

    def status(self) -> list[tuple[str, str, str]]:
        """Name, state and detail of each part."""
        with ThreadPoolExecutor(len(self.parts)) as pool:
            return list(pool.map(self._status, self.parts.values()))

    def _status(self, part: Part) -> tuple[str, str, str]:
        mine, wrong = self.running(part.name), part.healthy(health.PATIENT_S)
        if mine:
            return part.name, "not healthy" if wrong else "running", wrong or f"pid {mine.pid}"
        if part.shared and not wrong:
            return part.name, "running", "not started by this stack, and not stopped by it"
        return part.name, "stopped", ""

    def _spawn(self, part: Part) -> bool:
        """Start a part unless it runs already; True if it was started."""
        if self.running(part.name) or (part.shared and not part.healthy(health.PATIENT_S)):
            return False
        self._end(part, grace_s=0)  # children that a crash of their first process left behind
        log = self.layout.log(part.name)
        try:
            one = process.spawn(part.argv, log=log, cwd=REPO, env={**os.environ, "PYTHONUNBUFFERED": "1"})
        except OSError as err:
            raise Trouble(
                f"{part.argv[0]} cannot be started ({err.strerror}): run `make run`, which installs what is missing.",
            ) from err
        process.remember(self.layout.identity(part.name), one)
        return True

    def _await(self, part: Part, *, started: bool) -> None:
        begun, wait = time.monotonic(), Ticker(part.name)
        # Impatient at first: the question may simply have been asked too early.
        while wrong := part.healthy(min(1 + (time.monotonic() - begun) / 10, health.PATIENT_S)):
            if not self.running(part.name):
                raise Trouble(
                    f"{part.name} ended while it was starting: "
                    f"read the end of {self.layout.log(part.name)}, put right what it says, and run this again.",
                )
            if time.monotonic() - begun > _DEADLINE_S:
                raise Trouble(
                    f"{part.name} runs but is not healthy after {_DEADLINE_S:.0f} s ({wrong}): "
                    f"read the end of {self.layout.log(part.name)}, then `make stop` and run this again.",
                )
            wait.tick(wrong)
            time.sleep(_POLL_S)
        if started:
            self._tell(f"{part.name} is up")

    def _end(self, part: Part, grace_s: float) -> bool:
        record = self.layout.identity(part.name)
        if (recorded := process.recall(record)) is None:
            return False
        was_alive = process.end(recorded, self.layout.log(part.name), grace_s=grace_s)
        record.unlink(missing_ok=True)
        return was_alive


def share_kvm(device: Path = Path("/dev/kvm")) -> None:
    """Give /dev/kvm the group and mode that udev gives it on Debian, where there is no udev to do it.

    libvirt probes QEMU as another user. While that user cannot open the device, libvirt finds its own cache of what
    QEMU can do wrong each time it is asked, and probes anew: 4 s instead of 0.05 s for each start of a VM.
    """
    try:
        group = grp.getgrnam("kvm").gr_gid
        found = device.stat()
    except (KeyError, FileNotFoundError):
        return
    if os.geteuid() == 0 and (found.st_gid != group or stat.S_IMODE(found.st_mode) & 0o660 != 0o660):
        os.chown(device, -1, group)
        device.chmod(0o660)


def running_domains() -> list[str]:
    """Names of the domains that run on this machine, whoever they belong to."""
    listing = subprocess.run(
        ["virsh", "-q", "-c", LIBVIRT_URI, "list", "--name"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return listing.stdout.split()
