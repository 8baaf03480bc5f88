"""An administrator moves the data root: the disks there find their bases again, by digest."""

import pytest

from devstack.guests import read_counter
from tests.lib.support import remove_domains, stop_helpers, virsh
from worker_service.state.context import WorkerContext
from worker_service.watcher.loop import Watcher


def move_root(site):
    """Move the data root as an administrator does: services end, the folder moves, the settings follow."""
    stop_helpers(site.settings, site.folder / "end.log")
    moved = site.folder / "moved"
    site.worker.settings.data_root.rename(moved)
    site.settings.write_text(site.settings.read_text().replace(f'"{site.folder}/data"', f'"{moved}"'))
    site.worker = WorkerContext(site.settings)
    site.watcher = Watcher(site.worker, "w1", lambda _tag, _data: None)


@pytest.mark.parametrize("verb", ["start", "shutdown"])
def test_kept_disk_in_a_moved_root_goes_on(fresh_site, bootchain, verb):
    site, name = fresh_site, f"moved-{verb}"
    image = bootchain("moved.raw", folder=site.images, variant="key")
    uuid = site.start(name, image)["uuid"]
    site.wait(name, "running")
    site.until_counted(name)
    virsh("destroy", uuid)
    site.until(lambda: site.call("status", name=name), lambda reply: "disks are kept" in reply["message"])
    move_root(site)
    reply = site.start(name, image) if verb == "start" else site.call("shutdown", name=name)
    assert reply["success"], reply
    if verb == "start":
        site.wait(name, "running")
        site.end(name)
    site.until(lambda: site.call("status", name=name), lambda reply: "saved to" in reply["message"])
    assert read_counter(site.saved_file(name), "qcow2") == (2 if verb == "start" else 1)
    assert site.leftovers() == set()
    remove_domains(site.folder / "data")  # and its log, which names only the old root
