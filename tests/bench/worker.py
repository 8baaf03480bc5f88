"""The cost of a worker beside the tools that it uses: `make bench-worker`. It prints a table and asserts nothing.

It needs root and the packages of the development stack. It works in a folder of its own and removes it.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from uuid import uuid4

import httpx2
import libvirt
import msgspec

from devstack.console import say
from devstack.guests import build_bootchain
from devstack.layout import PYTHON, REPO, Layout, Ports
from devstack.stack import LIBVIRT_URI, Stack
from tests.bench.domains import until_running
from tests.bench.images import fetching, saving
from tests.bench.measure import Row, median, percentile, rounds, seconds, show
from tests.lib.support import Site, virsh
from worker_service.contract import Spec
from worker_service.hypervisor.kvm_xml import domain_xml
from worker_service.images import qemu_img
from worker_service.state.record import Phase, Record, new_uuid
from worker_service.steps import start

_STARTS = 10
_PARALLEL = 50
_BURSTS = 2
_LISTED = 1000
_TOKEN = secrets.token_hex(16)


def main() -> int:
    """Measure everything, and return 1 unless all bounds were kept."""
    with workbench() as site, worker_api(site) as client:
        rows = [*starting(site, client), *accepting(site, client), *fetching(site), *saving(site), *listing(site)]
    show("Worker", rows)
    return 0 if all(row.kept for row in rows) else 1


@contextmanager
def workbench() -> Iterator[Site]:
    """A worker with its API, beside everything else that runs on this machine."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-bench-", dir="/var/tmp"))
    folder.chmod(0o755)
    stack = Stack(Layout(var=folder / "stack", ports=Ports.free()))
    stack.start(["virtlogd", "libvirtd"])
    site = Site(folder, retry_delay_s=1.0)
    try:
        yield site
    finally:
        site.close()
        stack.stop()
        shutil.rmtree(folder)


@contextmanager
def worker_api(site: Site) -> Iterator[httpx2.Client]:
    """The worker API as a process of its own."""
    (site.folder / "tokens").write_text(f"{hashlib.sha256(_TOKEN.encode()).hexdigest()} read,operate bench\n")
    (site.folder / "minion").write_text(
        f"id: bench\nroot_dir: {site.folder}\nmodule_dirs: [{REPO}/states]\nsaltern: {{settings: {site.settings}}}\n"
        "file_client: local\nlog_file: salt.log\n"
    )
    port = Ports.free().worker
    with site.settings.open("a") as settings:
        settings.write(
            f'[api]\nport = {port}\ntokens_file = "{site.folder}/tokens"\nminion_config = "{site.folder}/minion"\n'
        )
    argv = [str(PYTHON), "-m", "worker_service.api", "--settings", str(site.settings)]
    log = (site.folder / "worker-api.log").open("wb")
    child = subprocess.Popen(argv, cwd=REPO, stdout=log, stderr=log)
    limits = httpx2.Limits(max_connections=_PARALLEL, max_keepalive_connections=_PARALLEL)
    client = httpx2.Client(
        base_url=f"http://127.0.0.1:{port}", headers={"Authorization": f"Bearer {_TOKEN}"}, timeout=120, limits=limits
    )
    try:
        while True:
            try:
                client.get("/healthz").raise_for_status()
                break
            except httpx2.TransportError:
                if child.poll() is not None:
                    raise SystemExit((site.folder / "worker-api.log").read_text()) from None
                time.sleep(0.1)
        yield client
    finally:
        client.close()
        child.terminate()
        child.wait()


class Starts:
    """Three ways to the same VM. Each is timed until libvirt reports that the domain runs: QEMU executes the guest."""

    def __init__(self, site: Site, client: httpx2.Client) -> None:
        self.site, self.client = site, client
        self.connection = libvirt.open(LIBVIRT_URI)
        self.image = site.images / "start.raw"
        build_bootchain(self.image, variant="spin")
        self.logs = site.folder / "logs"
        self.logs.mkdir(mode=0o755)
        site.start("warm", self.image)  # brings the image into the cache
        site.wait("warm", "running")
        virsh("destroy", "warm")
        self.record = site.worker.store.find(name="warm")

    def saltern(self, number: int) -> float:
        """POST at the worker API."""
        name = f"ours-{number}"
        body = {"name": name, "hda_image": f"file://{self.image}", "mem_size": 32}
        taken = self._until_running(name, lambda: self.client.post("/vmachines/start", json=body))
        self.site.wait(name, "running")
        self.site.call("destroy", name=name)
        return taken

    def bare(self, number: int) -> float:
        """libvirt's define and create of the same XML, with an existing overlay."""
        name = f"bare-{number}"
        spec = start.domain_spec(self.site.worker, self.record)
        disk = msgspec.structs.replace(spec.disks[0], path=self._overlay(name))
        logs = {"console_log": self.logs / name, "agent_log": self.logs / f"{name}.agent"}
        spec = msgspec.structs.replace(spec, uuid=str(uuid4()), name=name, disks=(disk,), **logs)
        xml = domain_xml(spec, accelerated=False)
        other = libvirt.open(LIBVIRT_URI)
        act = lambda: other.defineXMLFlags(xml, libvirt.VIR_DOMAIN_DEFINE_VALIDATE).create()  # noqa: E731
        return self._removed(name, self._until_running(name, act))

    def virt_install(self, number: int) -> float:
        """virt-install --import, with an existing overlay."""
        name = f"vi-{number}"
        argv = ["virt-install", "--connect", LIBVIRT_URI, "--name", name, "--memory", "32", "--vcpus", "1", "--import"]
        argv += ["--disk", f"path={self._overlay(name)},format=qcow2,bus=virtio", "--osinfo", "generic"]
        argv += ["--virt-type", "qemu", "--network", "user", "--graphics", "vnc", "--noautoconsole", "--quiet"]
        act = lambda: subprocess.run(argv, check=True, capture_output=True)  # noqa: E731
        return self._removed(name, self._until_running(name, act))

    def _overlay(self, name: str) -> Path:
        disk, path = self.record.disks["hda"], self.logs / f"{name}.qcow2"
        base = self.site.worker.cache.path(disk.base or "")
        qemu_img.create_overlay(path, base, disk.base_format, disk.virtual_size)
        return path

    def _until_running(self, name: str, act: Callable[[], object]) -> float:
        try:
            return until_running(self.connection, name, act)
        except SystemExit:
            say(self.site.logs())
            raise

    def _removed(self, name: str, taken: float) -> float:
        domain = self.connection.lookupByName(name)
        domain.destroy()
        domain.undefine()
        return taken


def starting(site: Site, client: httpx2.Client) -> list[Row]:
    """POST at the worker API -> domain active, beside libvirt's own define + create, and virt-install."""
    starts = Starts(site, client)
    ways = {"ours": starts.saltern, "bare": starts.bare, "virt-install": starts.virt_install}
    middle = {name: median(values) for name, values in rounds(_STARTS, ways).items()}
    site.call("destroy", name="warm")
    what, measured = "start of a cached image, POST -> active", f"{middle['ours']:.3f} s"
    others = {"bare": ("define + create", 1.3), "virt-install": ("virt-install --import", 0.8)}
    return [
        Row(what, measured, f"{label}: {middle[way]:.3f} s", middle["ours"] / middle[way], bound)
        for way, (label, bound) in others.items()
    ]


def accepting(site: Site, client: httpx2.Client) -> list[Row]:
    """50 `start` at once at the worker API, each of its own VM: the time until each is answered and durable."""

    def connected() -> HTTPConnection:
        made = HTTPConnection(client.base_url.host, client.base_url.port)
        made.connect()
        return made

    def one(connection: HTTPConnection, name: str) -> float:
        body = json.dumps({"name": name, "hda_image": "blank:1G", "mem_size": 16})
        begin = time.perf_counter()
        connection.request("POST", "/vmachines/start", body, headers)
        reply = json.loads(connection.getresponse().read())
        taken = time.perf_counter() - begin
        if not reply["success"]:
            raise SystemExit(reply["message"])
        return taken

    # httpx takes as long for a request as the worker API for a start, on the same two processors.
    headers = {"Authorization": client.headers["Authorization"], "Content-Type": "application/json"}
    answered: list[float] = []
    with ThreadPoolExecutor(_PARALLEL) as pool:
        for burst in range(_BURSTS):
            names = [f"accept-{burst}-{number}" for number in range(_PARALLEL)]
            connections = [connected() for _ in names]  # idle ones are closed between the bursts
            answered += pool.map(one, connections, names)
            list(pool.map(lambda name: site.call("destroy", name=name), names))
    p99, what = percentile(answered, 0.99), f"{_PARALLEL} starts at once, each answered (p99)"
    return [Row(what, f"{p99:.3f} s", f"0.3 s (p50 {median(answered):.3f} s)", p99 / 0.3, 1.0)]


def listing(site: Site) -> list[Row]:
    """`list` of 1,000 running VMs, with libvirt's test driver for a hypervisor: it lives in this process."""
    folder = site.folder / "listed"
    folder.mkdir()
    many = Site(folder, libvirt_uri="test:///default")
    connection = many.worker.hypervisor("kvm").connect()  # type: ignore[attr-defined]
    now = many.worker.now()
    for number in range(_LISTED):
        spec = Spec(name=f"vm-{number}", hypervisor="kvm", cpu_count=1, mem_size=1, hda_image="blank:1G")
        record = Record(uuid=new_uuid(), spec=spec, generation=1, phase=Phase.UP, phase_since=now, created_at=now)
        many.worker.store.create(record)
        xml = f"<domain type='test'><name>{spec.name}</name><uuid>{record.uuid}</uuid><memory>1024</memory>"
        connection.createXML(f"{xml}<os><type>hvm</type></os></domain>")
    reply = many.call("list")
    running = [vm for vm in reply["vmachines"] if vm["status"] == "running"]
    if len(running) != _LISTED:
        raise SystemExit(f"{len(running)} of {_LISTED} run: {reply['message']}")
    taken = median([seconds(lambda: many.call("list")) for _ in range(5)])
    return [Row(f"list of {_LISTED} VMs", f"{taken:.3f} s", "0.3 s", taken / 0.3, 1.0)]


if __name__ == "__main__":
    sys.exit(main())
