"""The minion restarts, and the host loses power, with VMs in every phase: each VM reaches its right end.

The worker is a host of the tests (libvirt, minion, worker API). Salt's master and the master service run beside it.
"""

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from devstack.guests import build_bootchain, read_counter
from devstack.layout import REPO, Layout, Ports
from devstack.stack import Stack
from tests.lib.faults import call_argv, standing, state
from tests.lib.host import Host
from tests.lib.support import PATIENCE_S, eventually, stop_helpers
from worker_service.core.failpoints import ENVIRONMENT

HELD = ("fetch.done", "boot.before", "boot.started", "flatten.flattened", "save.staged", "clean.removed")
HELD_BY_ONE_OF_EACH_KIND = ("fetch.done", "save.staged")
"""Of a VM that is not up yet, and of one that is off. How the minion ended changes nothing for a helper."""
VMS = "/api/v1/vmachines"


class Site:
    """The stack, and the host that its worker is."""

    def __init__(self, folder: Path) -> None:
        self.host = Host(folder / "host")
        settings = {
            "tick_s": 1.0,
            "retry_delay_s": 0.5,
            "max_parallel_jobs": 32,
            "acceleration": "tcg",
            "cpu_overcommit": 64.0,
        }
        self.layout = Layout(
            var=folder / "var",
            ports=Ports.free(),
            minion=f"worker-{folder.name}",
            worker_settings=settings,
            master_settings={"poll_interval_s": 5},
        )
        self.stack = Stack(self.layout, parts=self.host.parts(self.layout, "minion", "worker-api"))
        self.stack.start()

    def call(self, verb: str, fault: str = "", **parameters: object) -> dict:
        """A verb on the host in a process of its own, so that no minion need run; its helper meets the fault."""
        argv = self.host.wrapped(*call_argv(self.layout.worker_toml, verb, json.dumps(parameters)))
        environment = {**os.environ, **({ENVIRONMENT: fault} if fault else {})}
        done = subprocess.run(argv, cwd=REPO, env=environment, check=True, capture_output=True, text=True)
        reply: dict = json.loads(done.stdout)
        return reply

    def body(self, name: str, **options: object) -> dict[str, object]:
        """The parameters of a new boot-sector guest."""
        image = self.layout.images / f"{name}.raw"
        build_bootchain(image, **options)
        return {
            "name": name,
            "hda_image": f"file://{image}",
            "hda_save_to": f"file://{self.saved(name)}",
            "mem_size": 16,
        }

    def saved(self, name: str) -> Path:
        return self.layout.saved / f"{name}.qcow2"

    def held(self, name: str, point: str) -> int:
        """Bring a VM to a failpoint, at which its helper stops, and return the helper's pid."""
        uuid = self.call("start", f"{point}=stop", **self.body(name))["uuid"]
        deadline = time.monotonic() + PATIENCE_S
        while True:
            if stopped := standing(self.layout.worker_toml, uuid):
                return stopped[0]
            assert time.monotonic() < deadline, self.call("status", name=name)
            self.call("status", f"{point}=stop", name=name)
            time.sleep(0.2)

    def wait(self, name: str, *parameters: str, within_s: float = PATIENCE_S) -> dict:
        """The worker API's report of a VM once it has one of these statuses. Unknown until the master sends it."""
        deadline = time.monotonic() + within_s
        path = f"/vmachines/status?name={name}"
        while (reply := self.stack.worker_api("GET", path).body).get("status") not in parameters:
            assert time.monotonic() < deadline, reply
            time.sleep(0.3)
        return reply

    def close(self) -> None:
        stop_helpers(self.layout.worker_toml, self.layout.log("end"))
        self.stack.stop()
        self.host.cut_power()


@pytest.fixture(scope="module")
def site():
    folder = Path(tempfile.mkdtemp(prefix="saltern-host-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = Site(folder)
    yield made
    made.close()
    shutil.rmtree(folder)
    shutil.rmtree(made.layout.data_root, ignore_errors=True)


@pytest.mark.parametrize(("how", "points"), [("kill", HELD), ("term", HELD_BY_ONE_OF_EACH_KIND)])
def test_restarted_minion_takes_over_orphans_only(site, how, points):
    """Half of the helpers die with the minion, half continue, and no step is done twice."""
    minion = site.stack.running("minion")
    if how == "term":
        os.kill(minion.pid, signal.SIGTERM)
    site.stack.kill("minion")
    names = {point: f"{how}-{point.replace('.', '-')}" for point in points}
    dead = [site.held(f"{name}-dead", point) for point, name in names.items()]
    alive = [site.held(f"{name}-alive", point) for point, name in names.items()]
    assert site.call("start", **site.body(f"{how}-runs", variant="spin"))["success"]
    site.wait(f"{how}-runs", "running")
    qemu = site.host.qemu(f"{how}-runs")
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    site.stack.start_part("minion")
    assert [state(pid) for pid in alive] == ["T"] * len(alive)
    for pid in alive:
        os.kill(pid, signal.SIGCONT)
    for name in names.values():
        for which in ("dead", "alive"):
            site.wait(f"{name}-{which}", "halted")
            assert read_counter(site.saved(f"{name}-{which}"), "qcow2") == 1
    assert site.wait(f"{how}-runs", "running")["status"] == "running"
    assert site.host.qemu(f"{how}-runs") == qemu
    assert not list(site.layout.saved.glob("*conflict*"))


def test_host_that_lost_power_comes_back(site):
    """QEMU, libvirtd, helpers, minion and API stop at one moment. /run is gone, and the boot id is another one."""
    names = {point: f"cut-{point.replace('.', '-')}" for point in HELD}
    assert site.stack.api("POST", VMS, site.body("desired", variant="spin")).status == 201
    for name in ("cut-runs", "cut-paused"):
        assert site.call("start", **site.body(name, variant="spin"))["success"]
        site.wait(name, "running")
    assert site.call("suspend", name="cut-paused")["success"]
    site.wait("desired", "running")
    site.stack.kill("minion")  # its watcher must not help along what is to be held
    for point, name in names.items():
        site.held(name, point)
    site.host.cut_power()
    assert site.host.processes() == []
    site.stack.start()
    for name in names.values():
        assert site.wait(name, "halted", "failed to start", "failed to save")["status"] == "halted"
        # Cut off after its boot, but before that was noted, it is booted once more.
        assert read_counter(site.saved(name), "qcow2") in ({1, 2} if name == names["boot.started"] else {1})
    for name in ("cut-runs", "cut-paused"):  # not intended, and the worker does not start it by itself
        eventually(lambda name=name: "kept" in site.call("status", name=name)["disks"]["hda"])
        reply = site.call("status", name=name)
        assert (reply["status"], reply["halt_cause"]) == ("halted", "host crashed or lost power")
        assert not site.saved(name).exists()
    # Its master wants that one to run: it goes on with its own disk.
    eventually(lambda: site.stack.api("GET", f"{VMS}/desired").body.get("status") == "running")
    assert site.stack.api("DELETE", f"{VMS}/desired").ok
