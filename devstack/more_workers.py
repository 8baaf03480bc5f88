"""Further workers of a stack, each in an emulated host of its own: `make run HYPERVISOR=xen` adds `xen1`.

The host is a usual Debian that `states/worker` makes into a worker at its first start; its disk in `var/hosts/` then
keeps that. Its minion reaches the Salt master at 10.0.2.2, which is this machine as QEMU's network shows it. Images and
saved disks go over HTTP, because the host shares no file system with the stack.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from devstack import config, health, http
from devstack.console import Trouble, progress, say
from devstack.guests.tools import run
from devstack.health import Health
from devstack.hosts.code import PACKAGE, code_disks
from devstack.hosts.connection import Connection
from devstack.hosts.machine import READY, SSH_PORT, Image, command_line
from devstack.hosts.vbox import build_vbox
from devstack.hosts.vbox_host import vbox_image
from devstack.hosts.xen import build_xen
from devstack.hosts.xen_host import xen_image
from devstack.layout import PYTHON, REPO, Layout
from devstack.stack import Part

NAMES: Final = {"xen": "xen1", "vbox": "vbox1"}
"""hypervisor -> the worker that has it."""
FILES: Final = "files"
MACHINE: Final = "10.0.2.2"
"""This machine, as its emulated hosts reach it."""
_API_PORT: Final = 8081
_FIRST_START_S: Final = 900.0
_PATIENCE: Final = {"poll_timeout_s": 30.0, "retry_base_s": 40.0, "action_timeout_s": 120.0}
_MINION: Final = "/etc/salt/pki/minion"


def chosen(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Return the hypervisors of `make run HYPERVISOR=…` that need a worker of their own. Raises Trouble."""
    names = environment.get("HYPERVISOR", "").replace(",", " ").split()
    if unknown := sorted(set(names) - {"kvm", *NAMES}):
        known = ", ".join(("kvm", *NAMES))
        raise Trouble(f"HYPERVISOR={' '.join(unknown)} is not known: name one of {known}.")
    return tuple(name for name in dict.fromkeys(names) if name in NAMES)


def patient(layout: Layout, hypervisors: Iterable[str]) -> Layout:
    """Return the layout whose master gives workers time to answer, if some are emulated.

    A job of Salt takes an emulated worker up to fifteen seconds, and the start of a guest a minute. A master that does
    not wait sends more jobs, until the worker does nothing else.
    """
    if not tuple(hypervisors):
        return layout
    return replace(layout, master_settings={**layout.master_settings, **_PATIENCE})


def recorded(layout: Layout) -> tuple[str, ...]:
    """Return the hypervisors whose workers an earlier `make run` has started."""
    return tuple(kind for kind, name in NAMES.items() if layout.identity(name).exists())


def parts_of(layout: Layout, hypervisors: Iterable[str]) -> tuple[Part, ...]:
    """Return the parts of further workers, in the order of their start. Nothing is built."""
    workers = [EmulatedWorker(layout, kind) for kind in hypervisors]
    if not workers:
        return ()
    files = Part(
        FILES,
        (str(PYTHON), "-m", "devstack.file_server", str(layout.ports.files), str(layout.images), str(layout.saved)),
        health.get(f"http://127.0.0.1:{layout.ports.files}/"),
        (layout.ports.files,),
    )
    return (files, *(worker.part() for worker in workers))


def describe(layout: Layout, hypervisors: Iterable[str]) -> None:
    """Print how to use further workers."""
    for kind in hypervisors:
        image, saved = (
            f"http://{MACHINE}:{layout.ports.files}/{name}" for name in ("images/demo.qcow2", "saved/x1.qcow2")
        )
        options = f"--hypervisor {kind} --network none --mem-size 128 --hda-image {image} --hda-save-to {saved}"
        say(f"{kind:8} saltern create x1 {options}")
        say(f"         the log of the host of {NAMES[kind]} is {layout.var / 'hosts' / NAMES[kind] / 'serial.log'}")


def pillar(layout: Layout, kind: str) -> dict[str, Any]:
    """Return the pillar that makes an emulated host into a worker of this stack."""
    token = hashlib.sha256(layout.worker_token.read_text().strip().encode()).hexdigest()
    return {
        "package": PACKAGE,
        "hypervisors": [kind],
        # What the host's image has: the environment is compiled already, and VirtualBox needs no libvirt.
        "packages": ["ca-certificates", "qemu-utils", *(["libvirt-clients"] if kind == "xen" else [])],
        "paths": {"venv": str(PYTHON.parents[1])},
        "minion": {
            "id": NAMES[kind],
            "master": MACHINE,
            "publish_port": layout.ports.publish,
            "master_port": layout.ports.request,
            "keysize": 2048,
            "log_level": "warning",
            # An emulated processor computes them for three seconds, several times at each start.
            "grains_cache": True,
            "grains_cache_expiration": 86_400,
            "loop_interval": 10,  # for the scheduler, which has nothing to do
        },
        "tokens": [{"sha256": token, "scopes": ["read", "operate", "console"], "label": "dev"}],
        "settings": {
            "data_root": "/var/lib/saltern",
            "images": {
                "http_networks": [f"{MACHINE}/32"],
                "save_hosts": [f"{MACHINE}:{layout.ports.files}"],
                "salt_roots": ["images"],
            },
            "api": {"host": "127.0.0.1", "port": _API_PORT},
        },
    }


class EmulatedWorker:
    """One further worker: its host, how that becomes a worker, and how it ends."""

    def __init__(self, layout: Layout, kind: str) -> None:
        self.layout = layout
        self.kind = kind
        self.name: Final = NAMES[kind]
        self.folder: Final = layout.var / "hosts" / self.name
        ssh, api = (getattr(layout.ports, f"{kind}_{end}") for end in ("ssh", "api"))
        self.api_url: Final = f"http://127.0.0.1:{api}"
        self._ports: Final = {SSH_PORT: ssh, _API_PORT: api}
        self._fingerprint: Final = self.folder / "fingerprint"
        self._started: Final = self.folder / "started"
        self._cache: Final = layout.var / "cache/hosts"

    def part(self) -> Part:
        """Return the host as a part of the stack."""
        return Part(
            self.name,
            (),
            self._healthy,
            tuple(self._ports.values()),
            wave=0,  # it boots while the other parts start
            awaited=4,  # behind the master, which enrolls it
            setup=self._set_up(),
            deadline_s=_FIRST_START_S,
            prepare=self._prepare,
            before_end=self._sync,
        )

    def _healthy(self, patience_s: float) -> str:
        """Check that the master has heard from the worker since its host started.

        A job of Salt would tell as well, but each takes the emulated processor ten seconds.
        """
        url = f"{self.layout.master_url}/api/v1/workers/{self.name}"
        try:
            started = self._started.stat().st_mtime
            reply = http.call("GET", url, headers=http.bearer(self.layout.admin_token), timeout_s=patience_s)
        except OSError as err:
            return f"{url}: {err}"
        if not reply.ok:
            return f"the master does not know it: {reply.body}"
        age_s = reply.body["age_s"]
        heard = age_s is not None and age_s < time.time() - started
        return "" if heard and reply.body["reachable"] else "the master has not heard from it yet"

    def _image(self) -> Image:
        disks = code_disks(self._cache)
        if self.kind == "vbox":
            return vbox_image(build_vbox(self._cache), disks, systemd=True)
        return xen_image(build_xen(self._cache), disks, systemd=True)

    def _prepare(self) -> Sequence[str]:
        """Make the host's disk unless it has one of this image; return QEMU's command line. Raises Trouble."""
        image = self._image()
        self.folder.mkdir(parents=True, exist_ok=True)
        disk, made_from = self.folder / "disk.qcow2", self.folder / "made-from"
        if not disk.exists() or not made_from.exists() or made_from.read_text() != image.folder.name:
            progress(f"{self.name}: a new disk; the host becomes a worker at its first start, in some minutes")
            for old in (disk, self._fingerprint):
                old.unlink(missing_ok=True)
            base = ("-b", str(image.folder / "disk.raw"), "-F", "raw")
            run(["qemu-img", "create", "-q", "-f", "qcow2", *base, str(disk)])
            made_from.write_text(image.folder.name)
        (self.folder / "serial.log").unlink(missing_ok=True)
        self._started.touch()
        config.exchange_keys(self.layout, self.name)
        return command_line(image, self.folder, self._ports)

    def _set_up(self) -> Health:
        """Make the host into a worker at its first start, and enroll it at the master."""
        enroll = health.enrolled(self.layout, self.name, self._fingerprint.read_text, self.api_url)

        def check(patience_s: float) -> str:
            serial = self.folder / "serial.log"
            if not serial.exists() or READY not in serial.read_text(errors="replace"):
                return "its host boots"
            if not self._fingerprint.exists():
                with self._connection() as host:
                    self._provision(host)
            return enroll(patience_s)

        return check

    def _connection(self) -> Connection:
        image = self._cache / (self.folder / "made-from").read_text()
        return Connection(image, self._ports[SSH_PORT])

    def _provision(self, host: Connection) -> None:
        progress(f"{self.name}: states/worker makes the host into a worker")
        pki = self.layout.salt / "pki"
        host.run(["mkdir", "-p", "-m", "700", _MINION])
        for source, name in (
            (pki / self.name / "minion.pem", "minion.pem"),
            (pki / self.name / "minion.pub", "minion.pub"),
            (pki / "master/master.pub", "minion_master.pub"),
        ):
            host.put(source, f"{_MINION}/{name}")
        host.run(["chmod", "600", f"{_MINION}/minion.pem"])
        data = json.dumps({"saltern": {"worker": pillar(self.layout, self.kind)}})
        salt_call = [str(PYTHON.with_name("salt-call")), "--local", "--retcode-passthrough", "--state-output=changes"]
        states = [f"--file-root={REPO}/states", "state.apply", "worker", f"pillar={data}"]
        done = host.run([*salt_call, *states], check=False)
        log = self.layout.log(f"{self.name}-states")
        log.write_text(done.stdout + done.stderr)
        if done.returncode:
            raise Trouble(f"states/worker did not make {self.name} into a worker: read {log}, and run this again.")
        worker = [str(PYTHON), "-m", "worker_service", "fingerprint", "--settings", "/etc/saltern/worker.toml"]
        self._fingerprint.write_text(host.run(worker).stdout.strip())

    def _sync(self) -> None:
        """Write what the host has in memory to its disk: its end is a power cut."""
        try:
            with self._connection() as host:
                host.run(["sync"], timeout_s=30)
        except (Trouble, OSError, subprocess.SubprocessError) as err:
            progress(f"{self.name}: {err}")
