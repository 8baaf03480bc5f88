"""The SLS of the main README with the real Salt, libvirt and QEMU: its text is applied, and does what it says."""

import re
import threading
from pathlib import Path

import pytest
import yaml

from devstack.guests import build_bootchain, read_counter
from tests.lib.support import eventually
from worker_service.state.record_store import RecordStore

REPO = Path(__file__).parents[4]


@pytest.fixture(scope="module")
def caller(site):
    """Salt's functions in this process, as a minion of the test module's worker whose file root has `web.sls`."""
    # Not at the top: Salt leaves an importer behind that pytest cannot collect further files with.
    import salt.client
    import salt.config

    folder = site.folder / "salt"
    folder.mkdir()
    settings = {
        "id": "worker1",
        "root_dir": str(folder),
        "module_dirs": [str(REPO / "states")],
        "saltern": {"settings": str(site.settings)},
        "file_client": "local",
        "file_roots": {"base": [str(folder)]},
        "log_file": "salt.log",
        "enable_gpu_grains": False,
        "enable_fqdns_grains": False,
    }
    (folder / "minion").write_text(yaml.safe_dump(settings))
    readme = (REPO / "README.md").read_text()
    (sls,) = re.findall(r"^```yaml\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    sls = sls.replace("/srv/images", str(site.images)).replace("/srv/saved", str(site.saved))
    (folder / "web.sls").write_text(sls)
    return salt.client.Caller(mopts=salt.config.minion_config(str(folder / "minion")))


def applied(caller, **parameters):
    """Apply the file; name -> `ret`."""
    states = caller.cmd("state.apply", "web", **parameters)
    assert isinstance(states, dict), states
    return {ret["name"]: ret for ret in states.values()}


def observed(site):
    return {vm["name"]: vm["status"] for vm in site.call("list")["vmachines"]}


def end_when_requested(site, name):
    """A boot sector hears no button: a key ends it once its shutdown was requested."""
    store, uuid = RecordStore(site.worker.store.root), site.call("status", name=name)["uuid"]

    def wait():
        eventually(lambda: store.read(uuid).shutdown_asked)
        site.end(name)

    threading.Thread(target=wait, daemon=True).start()


def test_sls_of_the_readme_does_what_it_says(site, caller):
    build_bootchain(site.images / "debian.qcow2", variant="key")
    for name in ("old01", "old02"):
        site.start(name, site.images / "debian.qcow2")
        site.wait(name, "running")

    dry_run = applied(caller, test=True)
    assert {name: ret["result"] for name, ret in dry_run.items()} == dict.fromkeys(("web01", "web02", "old01", "old02"))
    assert observed(site) == {"old01": "running", "old02": "running"}

    end_when_requested(site, "old01")
    done = applied(caller)
    assert {name: (ret["result"], ret["changes"]["status"]["new"]) for name, ret in done.items()} == {
        "web01": (True, "running"),
        "web02": (True, "suspended"),
        "old01": (True, "halted"),
        "old02": (True, "absent"),
    }, done
    assert observed(site) == {"web01": "running", "web02": "suspended", "old01": "halted"}
    assert read_counter(site.saved_file("old01"), "qcow2") == 1

    again = applied(caller)
    assert [name for name, ret in again.items() if (ret["result"], ret["changes"]) != (True, {})] == []


@pytest.mark.parametrize(
    ("function", "expected"), [("sys.doc", "vmachines.start"), ("sys.state_doc", "vmachines.running")]
)
def test_functions_and_states_describe_themselves(caller, function, expected):
    assert "hda_image" in caller.cmd(function, "vmachines")[expected]
