"""A bare Debian host becomes a worker and a master by the SLS, under a real systemd. Then it runs a VM.

Everything is installed from the mirrors, as a site does it: `make test-hosts`.
"""

import hashlib
import http.client
import http.server
import json
import shutil
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from devstack.guests import build_bootchain, read_counter
from devstack.layout import PYTHON, REPO, Ports
from tests.lib.container import Container
from tests.lib.support import eventually

pytestmark = pytest.mark.hosts

TOKEN = "sesame"
UNITS = ("libvirtd", "saltern-worker-api", "salt-minion", "salt-master", "salt-api", "saltern-gate", "saltern-master")


class Host:
    """The host and the addresses of its services from here: it has this machine's network."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports = Ports.free()
        for name in ("dist", "pillar"):
            (folder / name).mkdir()
        self._wheel()
        self._pillar()
        binds = {"/srv/saltern": REPO, "/srv/dist": folder / "dist", "/srv/pillar": folder / "pillar"}
        self.container = Container(folder, binds)
        for name in ("images", "saved"):
            (self.container.root / "srv" / name).mkdir()

    def _wheel(self) -> None:
        command = [PYTHON.with_name("uv"), "build", "--quiet", "--wheel", "--no-build-isolation", "--python", PYTHON]
        source = self.folder / "source"
        left_out = shutil.ignore_patterns(".git", ".venv", "var", "__pycache__", ".*_cache")
        shutil.copytree(REPO, source, symlinks=True, ignore=left_out)
        subprocess.run([*command, "--out-dir", self.folder / "dist", source], check=True)

    def _pillar(self) -> None:
        (wheel,) = (self.folder / "dist").glob("*.whl")
        settings = {
            "acceleration": "tcg",
            "images": {
                "read_roots": ["/srv/images", "/srv/saved"],
                "write_roots": ["/srv/saved"],
                "http_networks": ["127.0.0.0/8"],
            },
            "api": {"port": self.ports.worker},
        }
        token = {"label": "ann", "scopes": ["read", "operate"], "sha256": hashlib.sha256(TOKEN.encode()).hexdigest()}
        salt = {"publish_port": self.ports.publish, "ret_port": self.ports.request}
        worker = {
            "package": f"/srv/dist/{wheel.name}[worker]",
            "minion": {"id": "w1", "master": "127.0.0.1", "master_port": salt["ret_port"]},
            "tokens": [token],
            "guest_firewall": False,  # the host has this machine's network, and so its firewall
            "settings": settings,
        }
        master = {
            "package": f"/srv/dist/{wheel.name}[master]",
            "salt_master": {
                "interface": "127.0.0.1",
                **salt,
                "rest_cherrypy": {"host": "127.0.0.1", "port": self.ports.api},
            },
            "salt_api_firewall": False,  # as above
            "gate": {"salt_api_url": f"http://127.0.0.1:{self.ports.api}"},
            "settings": {"port": self.ports.master, "poll_interval_s": 5},
            "workers": ["w1"],
        }
        pillar = self.folder / "pillar"
        (pillar / "top.sls").write_text("base: {'*': [saltern]}\n")
        (pillar / "saltern.sls").write_text(yaml.safe_dump({"saltern": {"worker": worker, "master": master}}))

    def change_pillar(self, **worker: object) -> None:
        """Give the worker other pillar."""
        file = self.folder / "pillar/saltern.sls"
        pillar = yaml.safe_load(file.read_text())
        pillar["saltern"]["worker"] |= worker
        file.write_text(yaml.safe_dump(pillar))

    def apply(self, role: str) -> dict[str, dict]:
        """The result of each state of an SLS, by its id and function."""
        roots = ["--file-root=/srv/saltern/states", "--pillar-root=/srv/pillar"]
        argv = ["/opt/saltern/bin/salt-call", "--local", "--out=json", *roots, "state.apply", role]
        done = self.container.run(*argv, check=False)
        rets = json.loads(done.stdout)["local"]
        assert isinstance(rets, dict), rets
        assert {key: ret["comment"] for key, ret in rets.items() if not ret["result"]} == {}
        return rets

    def pid(self, unit: str) -> str:
        """The main process of a unit."""
        return self.container.run("systemctl", "show", "--value", "--property=MainPID", unit).stdout.strip()

    def ask(self, port: int, method: str, path: str, token: str, body: dict | None = None) -> dict:
        """An answer of the worker API or of the master service; empty while there is none."""
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        try:
            connection.request(method, path, json.dumps(body) if body else None, headers)
            return json.loads(connection.getresponse().read() or b"{}")
        except (OSError, http.client.HTTPException):
            return {}
        finally:
            connection.close()

    def status(self, name: str) -> dict:
        """The worker API's report of a VM."""
        return self.ask(self.ports.worker, "GET", f"/vmachines/status?name={name}", TOKEN)


@pytest.fixture(scope="module")
def host():
    folder = Path(tempfile.mkdtemp(prefix="saltern-systemd-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Host(folder)
    try:
        made.container.boot()
        made.container.run("apt-get", "update", "--quiet")
        # As the head of states/worker/init.sls says.
        made.container.run("apt-get", "install", "--quiet", "--yes", "python3-venv", "python3-dev", "gcc")
        made.container.run("python3", "-m", "venv", "/opt/saltern")
        made.container.run("/opt/saltern/bin/pip", "install", "--quiet", "salt>=3008.3,<3009")
        yield made
    finally:
        made.container.stop()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def provisioned(host):
    for role in ("worker", "master"):
        host.apply(role)
    # A container is no host in this one point: it may not make control groups.
    with (host.container.root / "etc/libvirt/qemu.conf").open("a") as settings:
        settings.write("cgroup_controllers = []\n")
    host.container.run("systemctl", "restart", "libvirtd")
    eventually(lambda: host.container.run("/opt/saltern/bin/salt-key", "-y", "-a", "w1", check=False).returncode == 0)
    token = (host.container.root / "etc/saltern/admin.token").read_text().strip()

    def is_enrolled():
        """By the pillar, once the minion's key is accepted and its mine has the worker's key."""
        host.apply("master")
        return host.ask(host.ports.master, "GET", "/api/v1/workers/w1", token).get("enrolled")

    eventually(is_enrolled)
    for unit in UNITS:
        eventually(lambda unit=unit: host.container.run("systemctl", "is-active", unit, check=False).returncode == 0)
    return host


def test_second_apply_changes_nothing(provisioned):
    for role in ("worker", "master"):
        changed = {key for key, ret in provisioned.apply(role).items() if ret["changes"]}
        assert not {key for key in changed if "saltutil" not in key}, changed


def test_hosts_units_come_up_after_a_reboot_too(provisioned):
    for unit in UNITS:
        assert provisioned.container.run("systemctl", "is-enabled", unit).stdout.strip() == "enabled"
    assert provisioned.container.run("systemctl", "--failed", "--no-legend").stdout == ""


def test_master_of_this_host_runs_a_vm_on_it(provisioned):
    token = (provisioned.container.root / "etc/saltern/admin.token").read_text().strip()
    ports = provisioned.ports
    image = provisioned.container.root / "srv/images/first.raw"
    build_bootchain(image)
    body = {
        "name": "first",
        "hda_image": "file:///srv/images/first.raw",
        "hda_save_to": "file:///srv/saved/first.qcow2",
    }
    eventually(lambda: provisioned.ask(ports.master, "GET", "/readyz", token).get("ready"), 120)
    assert provisioned.ask(ports.master, "POST", "/api/v1/vmachines", token, {**body, "mem_size": 16})["uuid"]
    shown = "/api/v1/vmachines/first"
    eventually(lambda: provisioned.ask(ports.master, "GET", shown, token).get("status") == "halted", 120)
    assert read_counter(provisioned.container.root / "srv/saved/first.qcow2", "qcow2") == 1


def test_restarted_services_leave_vms_and_helpers_alone(provisioned):
    """KillMode: the processes that these services forked continue during a restart."""
    image = provisioned.container.root / "srv/images/spin.raw"
    build_bootchain(image, variant="spin")
    body = {"name": "spin", "hda_image": "file:///srv/images/spin.raw", "hda_save_to": "", "mem_size": 16}
    assert provisioned.ask(provisioned.ports.worker, "POST", "/vmachines/start", TOKEN, body)["success"]
    eventually(lambda: provisioned.status("spin").get("status") == "running", 120)
    with held_back(image.read_bytes()) as (url, go_on):
        body = {"name": "fetched", "hda_image": url, "hda_save_to": "", "mem_size": 16}
        assert provisioned.ask(provisioned.ports.worker, "POST", "/vmachines/start", TOKEN, body)["success"]
        eventually(lambda: provisioned.status("fetched").get("progress"), 120)
        before = working(provisioned)
        assert {len(pids) for pids in before.values()} == {1}
        services = {unit: provisioned.pid(unit) for unit in ("saltern-worker-api", "salt-minion", "libvirtd")}
        provisioned.container.run("systemctl", "restart", *services)
        assert not set(services.values()) & {provisioned.pid(unit) for unit in services}
        assert working(provisioned) == before
        go_on.set()
        eventually(lambda: provisioned.status("fetched").get("status") == "running", 120)
    assert working(provisioned)["qemu"] == before["qemu"]
    for name in ("spin", "fetched"):
        gone = provisioned.ask(provisioned.ports.worker, "POST", "/vmachines/destroy", TOKEN, {"name": name})
        assert gone["success"], gone


def test_host_becomes_a_dom0_by_pillar(provisioned):
    """It does not run on Xen, which the worker says in a sentence with what to do; kvm goes on beside it."""
    provisioned.change_pillar(hypervisors=["kvm", "xen"])
    provisioned.apply("worker")
    run = provisioned.container.run
    for unit, state in (("saltern-xen-dom0", "enabled"), ("xendomains", "disabled"), ("libvirtd", "enabled")):
        assert run("systemctl", "is-enabled", unit, check=False).stdout.strip() == state
    assert "dom0_mem=2048M" in (provisioned.container.root / "etc/default/grub.d/saltern.cfg").read_text()
    assert "libxenlight state driver is not active" in run("virsh", "-c", "xen:///system", "uri", check=False).stderr
    answer = json.loads(run("/opt/saltern/bin/salt-call", "--out=json", "vmachines.capabilities").stdout)["local"]
    assert (answer["hypervisors"]["kvm"]["problem"], "Xen" in answer["hypervisors"]["xen"]["problem"]) == ("", True)
    token = (provisioned.container.root / "etc/saltern/admin.token").read_text().strip()
    shown = "/api/v1/workers/w1"

    def drivers():
        """What the master shows, whose polls go on."""
        worker = provisioned.ask(provisioned.ports.master, "GET", shown, token)
        return worker.get("drivers", {}) if worker.get("reachable") else {}

    eventually(lambda: "Xen" in drivers().get("xen", {}).get("problem", ""), 120)
    assert drivers()["kvm"]["problem"] == ""
    assert run("systemctl", "--failed", "--no-legend").stdout == ""
    changed = {key for key, ret in provisioned.apply("worker").items() if ret["changes"]}
    assert not {key for key in changed if "saltutil" not in key}, changed


def working(host):
    """Pids of QEMU for the VM `spin`, and of the helpers."""
    patterns = {
        "qemu": ["-f", "guest=spin,"],
        "helpers": ["-x", "saltern-helper"],
        "started": ["-f", r"worker_service\.helper [0-9a-f]"],
    }
    found = {
        name: set(host.container.run("pgrep", *words, check=False).stdout.split()) for name, words in patterns.items()
    }
    return {"qemu": found["qemu"], "helpers": found["helpers"] | found["started"]}


@contextmanager
def held_back(content):
    """An image at a server that keeps the second half until it may go on: its URL, and the event that lets it."""
    go_on = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()

        def do_GET(self):
            self.do_HEAD()
            half = len(content) // 2
            self.wfile.write(content[:half])
            self.wfile.flush()
            go_on.wait(120)
            self.wfile.write(content[half:])

        def log_message(self, *_):
            """Say nothing."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/image.raw", go_on
        go_on.set()
        server.shutdown()
