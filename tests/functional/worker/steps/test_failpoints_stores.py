"""The helper dies during a save to S3 and to SFTP: no disk is lost, and no partial disk has the final name.

One VM for each kind of store and failpoint, all at once, with real servers. The guest's own counter is the oracle.
"""

import hashlib
import re
import shutil
import tempfile
from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, was_met
from tests.lib.stores import S3Server, SftpServer, table
from tests.lib.support import Site

POINTS = ("save.part_written", "save.staged", "save.renamed", "save.committed", "save.noted")
CASES = [f"{kind}-{point}" for kind in ("s3", "sftp") for point in POINTS]


class World:
    """A worker with both stores, and what was ever seen there under a final name."""

    def __init__(self, folder):
        self.s3, self.sftp = S3Server(), SftpServer(folder)
        stores = table("s3://*", self.s3.settings(folder)) + table(self.sftp.store(), self.sftp.settings())
        # More slots than VMs: that of a killed helper may become free a moment after its next helper started.
        self.site = Site(folder, stores, max_parallel_jobs=2 * len(CASES))
        self.observed = {case: set() for case in CASES}

    def target(self, case):
        name = f"{vm_name(case)}.qcow2"
        return f"s3://{self.s3.bucket}/{name}" if case.startswith("s3-") else self.sftp.uri(name)

    def there(self, case):
        """The bytes under the final name, or None."""
        name = f"{vm_name(case)}.qcow2"
        if case.startswith("s3-"):
            return self.s3.get(name) if name in set(self.s3.keys()) else None
        path = self.sftp.folder / name
        return path.read_bytes() if path.exists() else None

    def look(self):
        """Say how far the VMs are, and note what lies under each final name: after it, for who has halted has saved."""
        listed = {vm["name"]: vm for vm in self.site.call("list")["vmachines"]}
        for case in CASES:
            if (data := self.there(case)) is not None:
                self.observed[case].add(hashlib.sha256(data).hexdigest())
        return {case: listed[vm_name(case)] for case in CASES}

    def close(self):
        self.site.close()
        self.s3.close()
        self.sftp.close()


def vm_name(case):
    return re.sub(r"[^a-z0-9]", "-", case)


def fault(case):
    return f"{case.partition('-')[2]}=kill"


@pytest.fixture(scope="module")
def world(libvirt):
    folder = Path(tempfile.mkdtemp(prefix="saltern-site-", dir="/var/tmp"))
    folder.chmod(0o755)
    made = World(folder)
    yield made
    made.close()
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def lives(world, bootchain):
    """Start one VM a case with its crash ahead of it, then let the watcher pick up what fell."""
    ends = ("halted", "failed to start", "failed to save")
    with pytest.MonkeyPatch.context() as patch:
        faults = {vm_name(case): fault(case) for case in CASES}
        faults_until_met(patch, world.site, lambda record: faults[record.name])
        for case in CASES:
            image = bootchain(f"{vm_name(case)}.raw", folder=world.site.images)
            reply = world.site.start(vm_name(case), image, mem_size=16, hda_save_to=world.target(case))
            assert reply["success"], reply
        return world.site.until(world.look, lambda vms: all(vm["status"] in ends for vm in vms.values()), within_s=400)


@pytest.mark.parametrize("case", CASES)
def test_disk_is_whole_under_its_name_at_all_times(world, lives, tmp_path, case):
    reply = lives[case]
    assert reply["status"] == "halted", world.site.logs()
    assert was_met(world.site, reply["uuid"], fault(case))
    assert reply["disks"]["hda"]["saved_to"] == world.target(case)
    data = world.there(case)
    assert world.observed[case] == {hashlib.sha256(data).hexdigest()} == {reply["disks"]["hda"]["sha256"]}
    (tmp_path / "home.qcow2").write_bytes(data)
    assert read_counter(tmp_path / "home.qcow2", "qcow2") == 1


def test_faults_leave_no_files(world, lives):
    expected = {f"{vm_name(case)}.qcow2{more}" for case in CASES for more in ("", ".manifest.json")}
    assert {*world.s3.keys(), *(path.name for path in world.sftp.folder.iterdir())} == expected
    assert world.s3.uploads() == []
    assert world.site.leftovers() == set()
