"""The parts of one stack: their commands, health, start and stop.

`make run` and the integration tests use the same class, each with its own Layout.
"""

from __future__ import annotations

import grp
import os
import stat
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from devstack import config, health, http, process
from devstack.console import Ticker, Trouble, progress
from devstack.health import Health
from devstack.layout import PYTHON, REPO, Layout

LIBVIRT_URI: Final = "qemu:///system"
_DEADLINE_S: Final = 90.0
_POLL_S: Final = 0.2
_ANSWER_S: Final = 60.0
"""Long, because some verbs of the master block until they are done."""


@dataclass(frozen=True)
class Part:
    """One daemon. The parts of a wave start together, once all parts of the waves before are healthy.

    The start waits for a part with `awaited` only in that later wave. A `shared` part belongs to the machine: if it
    runs already, the stack uses it and never stops it.
    """

    name: str
    argv: tuple[str, ...]
    healthy: Health
    ports: tuple[int, ...] = ()
    wave: int = 1
    awaited: int | None = None
    shared: bool = False
    grace_s: float = 10.0
    setup: Health | None = None
    """What the part needs after its start before it can be healthy."""
    umask: int = 0o077
    """The database and the logs have audit entries and addresses of accounts."""
    deadline_s: float = _DEADLINE_S
    prepare: Callable[[], Sequence[str]] | None = None
    """What makes the command line when the part is started, in place of `argv`."""
    before_end: Callable[[], None] | None = None


def _awaited(part: Part) -> int:
    return part.wave if part.awaited is None else part.awaited


def parts_of(layout: Layout) -> tuple[Part, ...]:
    """Return every part, in the order of their start."""
    ports, binaries, conf = layout.ports, PYTHON.parent, str(layout.salt)
    return (
        # libvirt makes folders for QEMU's user.
        Part(
            "virtlogd", ("/usr/sbin/virtlogd",), health.unix(health.VIRTLOGD_SOCKET), wave=0, shared=True, umask=0o022
        ),
        Part("libvirtd", ("/usr/sbin/libvirtd",), health.libvirt(LIBVIRT_URI), wave=0, shared=True, umask=0o022),
        Part(
            "salt-master",
            (f"{binaries}/salt-master", "-c", conf),
            health.tcp(ports.request),
            (ports.publish, ports.request),
        ),
        Part("salt-api", (f"{binaries}/salt-api", "-c", conf), health.tcp(ports.api), (ports.api,)),
        Part(
            "gate",
            (str(PYTHON), "-m", "master_service.gate", "--settings", str(layout.gate_toml)),
            health.gate(layout),
        ),
        # A later wave: a minion that finds no master waits for many seconds before it tries again.
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
            wave=3,  # it is ready once a worker has answered, and it asks at its start
            setup=health.enrolled(layout, layout.minion, partial(health.fingerprint, layout), layout.worker_url),
        ),
    )


class Stack:
    """All parts of one layout. All state is in files, so any process may start, check and stop the same stack."""

    def __init__(
        self,
        layout: Layout,
        *,
        parts: Iterable[Part] | None = None,
        report: Callable[[str], None] = progress,
    ) -> None:
        self.layout = layout
        self.parts: Final = {part.name: part for part in (parts_of(layout) if parts is None else parts)}
        self._report = report

    def api(self, method: str, path: str, body: object = None) -> http.Reply:
        """Send a request to the master service as its admin; `path` begins with /. Raises OSError without an answer."""
        headers = http.bearer(self.layout.admin_token)
        return http.call(method, self.layout.master_url + path, body=body, headers=headers, timeout_s=_ANSWER_S)

    def worker_api(self, method: str, path: str, body: object = None) -> http.Reply:
        """Send a request to the worker API with its token; `path` begins with /. Raises OSError without an answer."""
        headers = http.bearer(self.layout.worker_token)
        return http.call(method, self.layout.worker_url + path, body=body, headers=headers, timeout_s=_ANSWER_S)

    def start(self, names: Iterable[str] | None = None) -> list[str]:
        """Start the parts that do not run, wait until all are healthy, and return the started ones. Raises Trouble."""
        config.prepare(self.layout)
        share_kvm()
        chosen = [part for part in self.parts.values() if names is None or part.name in names]
        self._require_ports(chosen)
        started: list[str] = []
        for wave in sorted({wave for part in chosen for wave in (part.wave, _awaited(part))}):
            started += [part.name for part in chosen if part.wave == wave and self._spawn(part)]
            for part in chosen:
                if _awaited(part) == wave:
                    self._await(part, started=part.name in started)
        return started

    def _require_ports(self, parts: Iterable[Part]) -> None:
        """Raise Trouble if another program uses a port, before any part is started."""
        for part in parts:
            if not part.ports or self.running(part.name):
                continue
            self._end(part, grace_s=0)  # children that outlived a crash of their first process
            if taken := [port for port in part.ports if not health.tcp(port)(health.PATIENT_S)]:
                raise Trouble(
                    f"Port {taken[0]}, which {part.name} needs, is used by another program: "
                    f"find it with `ss -ltnp sport = :{taken[0]}`, stop it, and run this again.",
                )

    def start_part(self, name: str) -> None:
        """Start one part if it does not run, and wait until it is healthy."""
        self.start([name])

    def kill(self, name: str) -> bool:
        """End one part as a crash would: SIGKILL to all of its processes. Return whether it ran."""
        return self._end(self.parts[name], grace_s=0)

    def stop(self) -> list[str]:
        """Stop the parts that `start` started and that still run, and return them."""
        own = [part for part in self.parts.values() if not part.shared]
        with ThreadPoolExecutor(len(own)) as pool:
            ended = list(pool.map(lambda part: self._end(part, part.grace_s), own))
        stopped = [part.name for part, was_alive in zip(own, ended, strict=True) if was_alive]
        shared = [part for part in reversed(self.parts.values()) if part.shared and self.running(part.name)]
        if shared and (domains := running_domains()):
            self._report(
                f"libvirt keeps running: other virtual machines run on it ({', '.join(domains)}). "
                "To stop it too, end them (`virsh shutdown NAME`) and run `make stop` again."
            )
            return stopped
        return stopped + [part.name for part in shared if self._end(part, part.grace_s)]

    def running(self, name: str) -> process.Identity | None:
        """Return the process of a part that this stack started, if it lives."""
        found = process.recall(self.layout.identity(name))
        return found if found and found.alive else None

    def status(self) -> list[tuple[str, str, str]]:
        """Return name, state and detail of each part."""
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
        """Start a part unless it runs already; return whether it was started."""
        if self.running(part.name) or (part.shared and not part.healthy(health.PATIENT_S)):
            return False
        self._end(part, grace_s=0)  # children that outlived a crash of their first process
        log = self.layout.log(part.name)
        argv = part.prepare() if part.prepare else part.argv
        try:
            environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
            one = process.spawn(argv, log=log, cwd=REPO, env=environment, umask=part.umask)
        except OSError as err:
            raise Trouble(
                f"{argv[0]} cannot be started ({err.strerror}): run `make run`, which installs what is missing.",
            ) from err
        process.remember(self.layout.identity(part.name), one)
        return True

    def _await(self, part: Part, *, started: bool) -> None:
        begun, wait = time.monotonic(), Ticker(part.name)
        setup = part.setup if started else None
        while True:
            # A short timeout at first: the check may only have come too early.
            patience_s = min(1 + (time.monotonic() - begun) / 10, health.PATIENT_S)
            if not (wrong := setup(patience_s) if setup else ""):
                setup = None
                wrong = part.healthy(patience_s)
            if not wrong:
                break
            if not self.running(part.name):
                raise Trouble(
                    f"{part.name} ended while it was starting: "
                    f"read the end of {self.layout.log(part.name)}, fix the cause, and run this again.",
                )
            if time.monotonic() - begun > part.deadline_s:
                raise Trouble(
                    f"{part.name} runs but is not healthy after {part.deadline_s:.0f} s ({wrong}): "
                    f"read the end of {self.layout.log(part.name)}, then `make stop` and run this again.",
                )
            wait.tick(wrong)
            time.sleep(_POLL_S)
        if started:
            self._report(f"{part.name} is up")

    def _end(self, part: Part, grace_s: float) -> bool:
        record = self.layout.identity(part.name)
        if (recorded := process.recall(record)) is None:
            return False
        if grace_s and part.before_end and recorded.alive:
            part.before_end()
        was_alive = process.end(recorded, self.layout.log(part.name), grace_s=grace_s)
        record.unlink(missing_ok=True)
        return was_alive


def share_kvm(device: Path = Path("/dev/kvm")) -> None:
    """Give /dev/kvm the group and mode that udev gives it on Debian, on machines without udev.

    libvirt probes QEMU as another user. While that user cannot open the device, libvirt rejects its own cache of QEMU's
    capabilities on each use and probes again: 4 s instead of 0.05 s for each start of a VM.
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
    """Return the names of all domains that run on this machine."""
    listing = subprocess.run(
        ["virsh", "-q", "-c", LIBVIRT_URI, "list", "--name"],
        check=False,
        capture_output=True,
        text=True,
        timeout=30,
    )
    return listing.stdout.split()
