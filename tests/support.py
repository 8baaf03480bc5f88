"""Pieces that several kinds of tests use: the machine's libvirt, a worker of one's own, and cleaning up after both."""

import hashlib
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from devstack import process
from devstack.stack import LIBVIRT_URI
from worker_service import operations
from worker_service.watcher import Watcher
from worker_service.worker import Worker


def virsh(*words: str) -> str:
    """What virsh prints; errors are no news here."""
    command = ["virsh", "-q", "-c", LIBVIRT_URI, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout


def remove_domains(data_root: Path) -> None:
    """Remove the domains whose disks lie in this data root; all others are somebody else's."""
    for uuid in virsh("list", "--all", "--uuid").split():
        if f"{data_root}/" in virsh("dumpxml", uuid):
            virsh("destroy", uuid)
            virsh("undefine", uuid)


def helpers(settings: Path, uuid: str = "") -> list[int]:
    """Pids of the helpers of a worker, or of one of its VMs. They outlive whoever forked them, and would the tests."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"worker_service.helper" in words and bytes(settings) in words and (not uuid or uuid.encode() in words):
                found.append(int(entry.name))
    return found


def stop_helpers(settings: Path, log: Path) -> None:
    """End the helpers of a worker."""
    for pid in helpers(settings):
        if (one := process.identify(pid)) is not None:
            process.end(one, log, grace_s=0)


def sha256(path: Path) -> str:
    """Digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


class Site:
    """A worker of one's own: folders, settings, and the watcher's eyes, without Salt in between."""

    def __init__(self, folder: Path, **settings: object) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.saved = folder / "saved"
        for each in (self.images, self.saved):
            each.mkdir(exist_ok=True)
        self.settings = folder / "worker.toml"
        values = {"retry_delay_s": 0.2, "acceleration": "tcg", "cpu_overcommit": 64.0, **settings}
        self.settings.write_text(
            f'data_root = "{folder}/data"\n'
            + "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in values.items())
            + f'[images]\nread_roots = ["{self.images}", "{self.saved}"]\nwrite_roots = ["{self.saved}"]\n'
            'http_networks = ["127.0.0.0/8"]\ntimeout_s = 20\n'
        )
        self.worker = Worker(self.settings)
        self.events: list[tuple[str, dict]] = []
        self.watcher = Watcher(self.worker, "w1", lambda tag, data: self.events.append((tag, dict(data))))

    def call(self, verb: str, **parameters: object) -> dict:
        """A verb, as a door calls it."""
        return operations.answer(operations.VERBS[verb], self.worker, **parameters)

    def start(self, name: str, image: Path, **parameters: object) -> dict:
        """Start a VM of an image file here, saved to `saved/<name>.qcow2` unless said otherwise."""
        full = {"hda_image": f"file://{image}", "hda_save_to": f"file://{self.saved_file(name)}", "mem_size": 32}
        return self.call("start", name=name, **{**full, **parameters})

    def saved_file(self, name: str) -> Path:
        """Where `start` lets a VM be saved."""
        return self.saved / f"{name}.qcow2"

    def wait(self, name: str, *wanted: str, within_s: float = 60) -> dict:
        """Look, as the watcher does, until a VM has one of these statuses."""
        return self.until(lambda: self.call("status", name=name), lambda reply: reply.get("status") in wanted, within_s)

    def until(self, ask: Callable[[], dict], done: Callable[[dict], bool], within_s: float = 60) -> dict:
        """Let the watcher look until an answer is the one that is waited for."""
        deadline = time.monotonic() + within_s
        while not done(reply := ask()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached within {within_s} s; last: {reply}\n{self.logs()}")
            self.watcher.look()
            time.sleep(0.05)
        return reply

    def logs(self) -> str:
        """What the helpers said."""
        return "\n".join(f"{log}:\n{log.read_text()}" for log in self.folder.glob("data/*/*/helper.log"))

    def leftovers(self) -> set[str]:
        """Files of VMs and of unfinished transfers that are there now."""
        data = self.folder / "data"
        found = {*data.glob("vms/*/*.qcow2"), *data.glob("vms/**/*.part"), *data.glob("images/by-uri/*.part*")}
        found |= {*data.glob("vms/.*"), *self.saved.glob(".*part*")}
        return {str(path.relative_to(self.folder)) for path in found}

    def close(self) -> None:
        """Stop what runs and remove what is left of it."""
        stop_helpers(self.settings, self.folder / "end.log")
        remove_domains(self.folder / "data")
