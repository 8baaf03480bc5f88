"""`virsh migrate` between two hosts: the VM runs once, and goes on where it is."""

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.host import Host, Machine
from worker_service.state.record import Phase


@pytest.fixture
def hosts(bootchain):
    """Two hosts with a worker each. The second one has its own folder where the first has its VMs."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-host-", dir="/var/tmp"))
    folder.chmod(0o755)
    for name in ("one", "two", "two/vms"):
        (folder / name).mkdir()
    here = Machine(folder / "one", host=Host(folder / "one/host", "one"))
    vms = {folder / "two/vms": here.site.worker.store.vms}
    there = Machine(folder / "two", host=Host(folder / "two/host", "two", vms))
    yield here, there
    for machine in (there, here):
        machine.close()
    shutil.rmtree(folder)


def migrate(name, source, target):
    argv = ["virsh", "-c", source.host.uri, "migrate", "--live", "--persistent", "--undefinesource"]
    argv += ["--copy-storage-inc", name, target.host.uri, "--migrateuri", "tcp://127.0.0.1"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


def test_migrated_vm_runs_once(hosts, bootchain):
    here, there = hosts
    site = here.site
    uuid = site.start("moving", bootchain("key.raw", folder=site.images, variant="key"))["uuid"]
    site.wait("moving", "running")
    site.until_counted("moving")
    folder = site.worker.store.folder(uuid)
    copy = there.host.folder.parent / "vms" / uuid
    subprocess.run(["cp", "--archive", folder, copy], check=True)
    (copy / "screen/vnc").unlink()

    migrate("moving", here, there)
    site.until(dict, lambda _: site.worker.store.read(uuid).phase is Phase.KEPT)
    reply = site.call("status", name="moving")
    assert (reply["status"], reply["halt_cause"]) == ("halted", "migrated away"), reply
    assert [each["uuid"] for each in there.site.call("list")["foreign"]] == [uuid]
    for verb in ("shutdown", "start"):
        refused = site.call(verb, **(reply["spec"] if verb == "start" else {"name": "moving"}))
        assert (refused["success"], "virsh migrate" in refused["message"]) == (False, True), refused
    assert site.worker.domain(site.worker.store.read(uuid)).power == "absent"

    migrate("moving", there, here)
    site.wait("moving", "running")
    site.press("moving")
    site.wait("moving", "halted")
    assert read_counter(site.saved_file("moving"), "qcow2") == 1
