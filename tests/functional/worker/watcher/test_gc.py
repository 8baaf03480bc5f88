"""Forty lives through one worker API and one watcher: these keep no file, process, thread or memory.

Each VM's next life continues from its last saved disk, so the guest's own counter shows that none was lost.
"""

import os
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import httpx2
import pytest

from devstack.guests import read_counter
from tests.lib.support import PATIENCE_S, a_site, eventually, helpers, nurseries, sha256, virsh
from worker_service.state.record import SETTLED

VMS = [f"life-{number}" for number in range(8)]
FIRST, ALL = 2, 5
"""Lives of each VM until it is looked at for the first time, and in the end."""
GROWTH_MIB = 7.5


@pytest.fixture(scope="module")
def site(libvirt):
    with a_site(max_parallel_jobs=len(VMS)) as made:
        yield made


def live(url, site, name, image):
    """One life through the worker API, from its start to its saved disk."""
    with httpx2.Client(base_url=url, headers={"Authorization": "Bearer all"}, timeout=PATIENCE_S) as http:
        target = site.saved_file(name)
        parameters = {"name": name, "hda_image": f"file://{image}", "hda_save_to": f"file://{target}", "mem_size": 16}
        reply = http.post("/vmachines/start", json=parameters).json()
        assert reply["success"], reply
        eventually(lambda: site.worker.store.find(name=name).phase in SETTLED)
        reply = http.get("/vmachines/status", params={"name": name}).json()
        assert reply["status"] == "halted", reply
        assert reply["disks"]["hda"].get("saved_to") == f"file://{target}", reply
        assert reply["disks"]["hda"]["sha256"] == sha256(target)


def lives(url, site, bootchain, first, last):
    """These lives of all VMs, all at once, while the watcher looks."""

    def one_after_the_other(name):
        for number in range(first, last):
            live(url, site, name, site.saved_file(name) if number else bootchain(f"{name}.raw", folder=site.images))

    with ThreadPoolExecutor(len(VMS)) as pool:
        running = [pool.submit(one_after_the_other, name) for name in VMS]
        eventually(lambda: site.watcher.look() or all(each.done() for each in running), within_s=4 * PATIENCE_S)
    for each in running:
        each.result()
    eventually(lambda: not helpers(site.settings))


def files(pid):
    """The number of a process's open files by kind. Indistinguishable files are `socket` or `pipe`."""
    found = Counter()
    for path in list(Path(f"/proc/{pid}/fd").iterdir()):
        with suppress(FileNotFoundError):  # this folder itself
            found[str(path.readlink()).partition(":")[0]] += 1
    return found


def children(pid):
    """Pids of a process's children, including zombies."""
    found = set()
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
            found |= {int(child) for child in (task / "children").read_text().split()}
    return found


def resident_mib(pid):
    """Memory that a process has."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS:")]
    return int(line.split()[1]) / 1024


def threads():
    """The threads of this process by name, except those that the API's verbs start one by one."""
    return Counter(thread.name for thread in threading.enumerate() if not thread.name.startswith("verb"))


def worker_files(site):
    """The worker's files beside images, of which each life makes one, and slots, which appear one by one."""
    data = site.folder / "data"
    found = {path.relative_to(data) for path in data.rglob("*")}
    return {str(path) for path in found if path.parts[0] not in ("images", "slots")}


def test_long_running_processes_keep_no_memory_of_forty_vms(site, worker_api, bootchain):
    lives(worker_api, site, bootchain, 0, FIRST)
    eventually(lambda: len(nurseries(site.settings)) == 1)
    stay = [os.getpid(), *nurseries(site.settings)]
    before = {pid: (files(pid), children(pid), resident_mib(pid)) for pid in stay}
    kept, running = worker_files(site), threads()

    lives(worker_api, site, bootchain, FIRST, ALL)
    assert [read_counter(site.saved_file(name), "qcow2") for name in VMS] == [ALL] * len(VMS)
    eventually(lambda: [os.getpid(), *nurseries(site.settings)] == stay)
    for pid, (opened, started, resident) in before.items():
        eventually(lambda pid=pid, started=started: children(pid) <= started)
        eventually(lambda pid=pid, opened=opened: files(pid) <= opened)
        assert resident_mib(pid) - resident < GROWTH_MIB
    eventually(lambda: threads() <= running)
    eventually(lambda: worker_files(site) <= kept)
    assert site.leftovers() == set()
    assert set(virsh("list", "--all", "--name").split()).isdisjoint(VMS)
    assert not list(site.saved.glob("*conflict*"))
