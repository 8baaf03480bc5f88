"""Helpers for several kinds of tests: the machine's libvirt, a worker for a test, and the removal of both."""

import hashlib
import json
import os
import re
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final, TypeVar

from devstack import process
from devstack.stack import LIBVIRT_URI, Stack
from worker_service.core.settings import load
from worker_service.operations import verbs
from worker_service.state.context import WorkerContext
from worker_service.watcher.loop import Watcher

T = TypeVar("T")

PATIENCE_S: Final = float(os.environ.get("SALTERN_TEST_PATIENCE_S", "180"))
"""When a test takes something for hung for ever: a busy machine is slow, which is no property of the code."""


def virsh(*words: str, uri: str = LIBVIRT_URI) -> str:
    """Return the output of virsh. Errors are ignored."""
    command = ["virsh", "-q", "-c", uri, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout


_REMOVALS = 10


def remove_domains(data_root: Path, uri: str = LIBVIRT_URI, logs: Path = Path("/var/log/libvirt/qemu")) -> None:
    """Remove the domains whose disks lie in this data root, and libvirt's logs of them, but no others.

    A log contains the paths of its QEMU. This also finds the logs of domains that are gone.
    """
    own = f"{data_root}/"
    for _ in range(_REMOVALS):  # a process that still ends may hold a domain, and another one may just have made it
        found = [
            uuid for uuid in virsh("list", "--all", "--uuid", uri=uri).split() if own in virsh("dumpxml", uuid, uri=uri)
        ]
        for uuid in found:
            virsh("destroy", uuid, uri=uri)
            # libvirt keeps a domain that has any of these.
            virsh("undefine", uuid, "--managed-save", "--snapshots-metadata", "--checkpoints-metadata", uri=uri)
        if not found:
            break
    else:
        raise AssertionError(f"domains of {data_root} cannot be removed: {virsh('list', '--all', uri=uri)}")
    for log in logs.glob("*.log*"):
        with suppress(OSError):
            if own.encode() in log.read_bytes():
                log.unlink()


_FORK_SERVER: Final = b"worker_service.helper.forkserver"


def helpers(settings: Path, uuid: str = "") -> list[int]:
    """Return the pids of the helpers of a worker, or of one of its VMs: a helper holds the lock of its VM."""
    folder = f"{load(settings).data_root}/vms/{uuid}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                files = [str(each.readlink()) for each in (entry / "fd").iterdir()]
                if any(file.startswith(folder) and file.endswith("/lock") for file in files) and _is_helper(entry):
                    found.append(int(entry.name))
    return found


def _is_helper(process: Path) -> bool:
    """The starter of a helper holds its lock for a moment, too."""
    words = (process / "cmdline").read_bytes().split(b"\0")
    started = b"worker_service.helper" in words and not words[0].endswith(b"setsid")
    return started or (process / "comm").read_text().strip() == "saltern-helper"


def helpers_alive(settings: Path, uuid: str = "") -> list[int]:
    """Return the pids of all living helpers of a worker, or of one VM: each writes to its VM's log."""
    folder = f"{load(settings).data_root}/vms/{uuid}"
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                log = str((entry / "fd/1").readlink())
                if log.startswith(folder) and log.endswith("/helper.log"):
                    found.append(int(entry.name))
    return found


def nurseries(settings: Path, *programs: bytes) -> list[int]:
    """Return the pids of the fork servers of a worker, or of its processes of these programs."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if {*(programs or (_FORK_SERVER,))} & {*words} and bytes(settings) in words:
                    found.append(int(entry.name))
    return found


def stop_helpers(settings: Path, log: Path) -> None:
    """End the helpers of a worker, and those that they have started meanwhile."""
    # One that is only just starting has neither its lock nor its log yet, but its arguments.
    all_programs = (_FORK_SERVER, b"worker_service.helper")
    while pids := {*nurseries(settings, *all_programs), *helpers(settings), *helpers_alive(settings)}:
        for pid in pids:
            if (one := process.identify(pid)) is not None:
                process.end(one, log, grace_s=0)


def end_stack(stack: Stack) -> None:
    """Stop a stack with its helpers and domains. Its folders stay."""
    for part in ("minion", "worker-api"):  # first: they start again what has ended against somebody's will
        stack.kill(part)
    stop_helpers(stack.layout.worker_toml, stack.layout.log("helper"))
    remove_domains(stack.layout.data_root)
    stack.stop()


def eventually(condition: Callable[[], T], within_s: float = PATIENCE_S) -> T:
    """Wait until a condition holds, without any other check, and return its value."""
    began = time.monotonic()
    deadline = began + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(max(0.1, 2 * (time.monotonic() - began)))  # on an emulated host a look may take long
        began = time.monotonic()
    return found


def until_counted(domain: str, uri: str = LIBVIRT_URI) -> None:
    """Wait until a boot-sector guest has counted its boot, which is its only write."""
    eventually(lambda: re.search(r"wr_req [1-9]", virsh("domblkstat", domain, "vda", uri=uri)))


def press_key(screen: Path) -> None:
    """Press a key at the console of a VM, without libvirtd. QEMU has it afterwards. Source: RFC 6143."""
    with socket.socket(socket.AF_UNIX) as vnc:
        vnc.settimeout(PATIENCE_S)
        vnc.connect(str(screen))
        with vnc.makefile("rb") as said:
            said.read(12)
            vnc.sendall(b"RFB 003.008\n")
            said.read(said.read(1)[0])
            vnc.sendall(b"\x01\x01")  # no password; others may look too
            said.read(4 + 20)
            said.read(struct.unpack(">I", said.read(4))[0])
            pressed = b"".join(struct.pack(">BBHI", 4, down, 0, ord("a")) for down in (1, 0))
            vnc.sendall(pressed + struct.pack(">BBHHHH", 3, 0, 0, 0, 1, 1))
            with suppress(OSError):  # the picture that is asked for comes after the key, unless that has ended it all
                said.read(1)


def sha256(path: Path) -> str:
    """Return the SHA-256 digest of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate for 127.0.0.1 and its key."""
    cert, key = folder / "cert.pem", folder / "key.pem"
    argv = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", cert, "-days", "2"]
    subprocess.run(
        [*argv, "-subj", "/CN=w1", "-addext", "subjectAltName=IP:127.0.0.1"], check=True, capture_output=True
    )
    return cert, key


class Site:
    """A worker of one's own: folders, settings, and the watcher's eyes, without Salt in between.

    Args:
        folder: all that it has lies below.
        images: more lines of the settings' `[images]`, and tables that follow it.
        settings: more of the settings.
    """

    def __init__(self, folder: Path, images: str = "", **settings: object) -> None:
        self.folder = folder
        self.images = folder / "images"
        self.saved = folder / "saved"
        for each in (self.images, self.saved):
            each.mkdir(exist_ok=True)
        self.settings = folder / "worker.toml"
        values = {"retry_delay_s": 0.2, "acceleration": "tcg", "cpu_overcommit": 64.0, **settings}
        values.setdefault("libvirt_timeout_s", 600.0)  # dozens of boots at once on a busy machine
        self.settings.write_text(
            f'data_root = "{folder}/data"\n'
            + "".join(f"{key} = {value!r}\n".replace("'", '"') for key, value in values.items())
            + f'[images]\nread_roots = ["{self.images}", "{self.saved}"]\nwrite_roots = ["{self.saved}"]\n'
            f'http_networks = ["127.0.0.0/8"]\ntimeout_s = {PATIENCE_S}\n{images}'
        )
        self.worker = WorkerContext(self.settings)
        self.defaults: dict[str, object] = {}
        """Parameters of each `start`, unless it gives others."""
        self.pause_s = 0.05
        """Seconds between two looks."""
        self.rest = 0.0
        """The shortest pause, in lengths of the look before it: so much of a processor is left to slow guests."""
        self.events: list[tuple[str, dict]] = []
        self.watcher = Watcher(self.worker, "w1", lambda tag, data: self.events.append((tag, dict(data))))

    def call(self, verb: str, **parameters: object) -> dict:
        """Call a verb as an interface does."""
        return verbs.answer(verbs.VERBS[verb], self.worker, **parameters)

    def start(self, name: str, image: Path, **parameters: object) -> dict:
        """Start a VM from an image file here. It is saved to `saved/<name>.qcow2` by default."""
        full = {"hda_image": f"file://{image}", "hda_save_to": f"file://{self.saved_file(name)}", "mem_size": 32}
        return self.call("start", name=name, **{**full, **self.defaults, **parameters})

    def saved_file(self, name: str) -> Path:
        """Return the file to which `start` saves a VM."""
        return self.saved / f"{name}.qcow2"

    def put_saved(self, path: Path, image: Path | None = None, uuid: str = "") -> None:
        """Write a saved disk with its manifest: a VM that starts from it may replace it. By default no guest boots."""
        content = image.read_bytes() if image else bytes(510) + b"\x55\xaa"
        with path.open("wb") as file:  # a small destination has room for little
            file.write(content.rstrip(b"\0"))
            file.truncate(len(content))
        manifest = {"sha256": sha256(path), "saved_to": f"file://{path}", "vm": {"uuid": uuid, "owner": ""}}
        path.with_name(f"{path.name}.manifest.json").write_text(json.dumps(manifest))

    def wait(self, name: str, *expected: str, within_s: float = PATIENCE_S) -> dict:
        """Look as the watcher does, until a VM has one of these statuses."""
        return self.until(
            lambda: self.call("status", name=name), lambda reply: reply.get("status") in expected, within_s
        )

    def until(self, ask: Callable[[], dict], done: Callable[[dict], bool], within_s: float = PATIENCE_S) -> dict:
        """Look as the watcher does, until an answer is the expected one."""
        deadline, began = time.monotonic() + within_s, time.monotonic()
        while not done(reply := ask()):
            if time.monotonic() > deadline:
                raise AssertionError(f"not reached within {within_s} s; last: {reply}\n{self.logs()}")
            self.watcher.look()
            time.sleep(max(self.pause_s, self.rest * (time.monotonic() - began)))
            began = time.monotonic()
        return reply

    def until_counted(self, name: str) -> None:
        """Wait until a boot-sector guest has counted its boot."""
        until_counted(self.worker.store.find(name=name).uuid, self.worker.settings.libvirt_uri)

    def press(self, name: str) -> None:
        """Press a key at a VM, which ends a guest of the variant `key`."""
        press_key(self.worker.store.folder(self.worker.store.find(name=name).uuid) / "screen/vnc")

    def end(self, name: str) -> None:
        """Let a guest of the variant `key` count its boot and go off by itself."""
        self.until_counted(name)
        self.press(name)

    def logs(self) -> str:
        """Return the output of the helpers."""
        return "\n".join(f"{log}:\n{log.read_text()}" for log in self.folder.glob("data/*/*/helper.log"))

    def leftovers(self) -> set[str]:
        """Return the present files of VMs and of unfinished transfers."""
        data = self.folder / "data"
        found = {
            *data.glob("vms/*/*.qcow2"),
            *data.glob("vms/*/*.vdi"),
            *data.glob("vms/**/*.part"),
            *data.glob("images/by-uri/*.part*"),
        }
        found |= {*data.glob("vms/.*"), *self.saved.glob(".*part*")}
        return {str(path.relative_to(self.folder)) for path in found}

    def close(self) -> None:
        """Stop and remove everything."""
        stop_helpers(self.settings, self.folder / "end.log")
        settings = self.worker.settings
        remove_domains(settings.data_root, settings.libvirt_uri, settings.libvirt_log_folder)


@contextmanager
def a_site(**settings: object) -> Iterator[Site]:
    """A worker for a test, removed at the end. Not in pytest's tmp_path, which QEMU's user cannot enter."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Site(folder, **settings)
    yield made
    made.close()
    shutil.rmtree(folder)
