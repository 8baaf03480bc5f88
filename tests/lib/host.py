"""A host that a test may break: its libvirt, its /run, its boot id, and a power cut for all of them at once.

It does not touch the machine's libvirt: it lives in mount namespaces whose /run and libvirt folders are folders of the
test. Every daemon "on the host" is started through `wrapped`, with the tools of devstack.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from devstack import health, process
from devstack.layout import REPO, Layout, Ports
from devstack.stack import Part, Stack, parts_of
from tests.lib.support import Site, eventually
from worker_service.contract import alive_tag

_MARK = "SALTERN_TEST_HOST"
_ENTER = """
mount --make-rprivate /
mount --bind "$0/run" /run
mount --bind "$0/etc" /etc/libvirt/qemu
mount --bind "$0/lib" /var/lib/libvirt
mount --bind "$0/log" /var/log/libvirt
mount --bind "$0/boot_id" /proc/sys/kernel/random/boot_id
hostname "$1"
shift
exec "$@"
"""


_WATCH = """
import sys
from worker_service.watcher.loop import Watcher
from worker_service.state.context import WorkerContext
Watcher(WorkerContext(sys.argv[1]), "w1", lambda tag, data: print(tag, flush=True)).run()
"""


class Host:
    """One host. `etc`, `lib` and `log` survive a power cut, `run` does not.

    Args:
        folder: all that it has lies below.
        name: its host name. Two hosts between which a VM is to migrate have different ones.
        other: folder of this host -> the path at which its processes see it, instead of what lies there.
    """

    def __init__(self, folder: Path, name: str = "host", other: Mapping[Path, Path] | None = None) -> None:
        self.folder = folder
        self._name = name
        self._other = other or {}
        for each in ("run", "etc", "lib", "log"):
            (folder / each).mkdir(mode=0o755, parents=True)
        self._boot()

    def _boot(self) -> None:
        """Start as a host does: with an empty /run and a new boot id."""
        shutil.rmtree(self.folder / "run")
        (self.folder / "run/lock").mkdir(mode=0o755, parents=True)
        (self.folder / "run/libvirt").mkdir(mode=0o755)
        (self.folder / "boot_id").write_text(f"{uuid.uuid4()}\n")

    @property
    def uri(self) -> str:
        """The URI of its libvirt, the same inside and outside."""
        return f"qemu+unix:///system?socket={self.folder}/run/libvirt/libvirt-sock"

    def wrapped(self, *argv: str) -> tuple[str, ...]:
        """Return a command line that runs on this host."""
        mark = f"{_MARK}={self.folder}"
        binds = "".join(f'mount --bind "{source}" "{target}"\n' for source, target in self._other.items())
        enter = ("unshare", "--mount", "--uts", "sh", "-ec", _ENTER.replace("exec", binds + "exec"), str(self.folder))
        return ("env", mark, *enter, self._name, *argv)

    def parts(self, layout: Layout, *names: str) -> tuple[Part, ...]:
        """Return the parts of a stack, with libvirt and the named parts on this host."""
        healthy = {
            "virtlogd": health.unix(self.folder / "run/libvirt/virtlogd-sock"),
            "libvirtd": health.libvirt(self.uri),
        }
        config = self.folder / "libvirtd.conf"
        config.write_text(f'host_uuid = "{uuid.uuid5(uuid.NAMESPACE_URL, str(self.folder))}"\n')
        more = {"libvirtd": ("--config", str(config))}
        return tuple(
            replace(
                part,
                argv=self.wrapped(*part.argv, *more.get(part.name, ())),
                shared=False,
                healthy=healthy.get(part.name, part.healthy),
            )
            if part.name in {*healthy, *names}
            else part
            for part in parts_of(layout)
        )

    def virsh(self, *words: str) -> str:
        """Return the output of virsh. Errors are ignored."""
        command = ["virsh", "-q", "-c", self.uri, *words]
        return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout

    def processes(self) -> list[int]:
        """Return all processes of this host: daemons and their children by a mark, QEMU by the paths of its command."""
        mark = f"{_MARK}={self.folder}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with suppress(OSError):
                    environment = (entry / "environ").read_bytes().split(b"\0")
                    command = (entry / "cmdline").read_bytes()
                    is_qemu = command.startswith(b"/usr/bin/qemu-system") and bytes(self.folder.parent) in command
                    if mark in environment or is_qemu:
                        found.append(int(entry.name))
        return found

    def qemu(self, name: str) -> int:
        """Return the pid of a VM's QEMU."""
        return int((self.folder / f"run/libvirt/qemu/{name}.pid").read_text())

    def cut_power(self) -> None:
        """Stop everything at one moment, without another write, and remove /run."""
        for pid in self.processes():
            _signal(pid, signal.SIGSTOP)
        dying: set[int] = set()
        while True:
            marked = self.processes()
            for pid in marked:
                _signal(pid, signal.SIGKILL)
            # A process that is ending has no memory any more, and so no mark.
            dying = {pid for pid in dying | set(marked) if _lives(pid)}
            if not dying:
                break
            time.sleep(0.01)
        self._boot()


@contextmanager
def watched(site: Site) -> Iterator[None]:
    """Run the watcher of a worker as a process, which already receives the hypervisor's events."""
    output = site.folder / "watcher.log"
    with output.open("wb") as log:
        argv = [sys.executable, "-c", _WATCH, str(site.settings)]
        watcher = subprocess.Popen(argv, cwd=REPO, stdout=log, stderr=log)
    try:
        eventually(lambda: alive_tag("w1") in output.read_text())
        yield
    finally:
        watcher.kill()
        watcher.wait()
        site.worker.wake_socket.unlink(missing_ok=True)


class LibvirtHost:
    """A host with its libvirt, and workers that use it."""

    def __init__(self, folder: Path, host: Host | None = None) -> None:
        self.host = host or Host(folder / "host")
        layout = Layout(var=folder / "var", ports=Ports.free())
        self.stack = Stack(layout, parts=self.host.parts(layout))
        self.start()

    def worker(self, folder: Path, **settings: object) -> Site:
        """Make a worker in an existing folder."""
        logs = f"{self.host.folder}/log/qemu"
        return Site(folder, libvirt_uri=self.host.uri, libvirt_log_folder=logs, **settings)

    def start(self) -> None:
        """Start the missing daemons of its libvirt."""
        self.stack.start(["virtlogd", "libvirtd"])

    def stop_libvirtd(self, how: str) -> None:
        """Stop libvirtd. `kill` is a crash; `term` is what a package upgrade does."""
        daemon = self.stack.running("libvirtd")
        assert daemon is not None
        os.kill(daemon.pid, signal.SIGTERM if how == "term" else signal.SIGKILL)
        assert process.wait_gone(daemon, 30)

    def close(self) -> None:
        """Stop everything but the workers."""
        self.stack.stop()
        self.host.cut_power()


class Machine(LibvirtHost):
    """A host with its libvirt, and one worker that uses it. `watched` runs a watcher, as the minion would."""

    def __init__(self, folder: Path, host: Host | None = None, **settings: object) -> None:
        super().__init__(folder, host)
        (folder / "site").mkdir()
        self.site = self.worker(folder / "site", **settings)

    def watched(self) -> AbstractContextManager[None]:
        """Run the worker's watcher."""
        return watched(self.site)

    def close(self) -> None:
        """Stop everything."""
        self.site.close()
        super().close()


def _lives(pid: int) -> bool:
    """Return whether there is such a process. A zombie is none."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
