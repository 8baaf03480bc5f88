"""The Salt states with the real Salt, libvirt and QEMU: a dry run is right, and a second apply changes nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from devstack.guests import read_counter
from tests.lib.support import sha256

REPO = Path(__file__).parents[4]
GOALS = ("running", "paused", "halted", "absent")


@pytest.fixture(scope="module")
def minion(site):
    """A minion's configuration for the test module's worker."""
    folder = site.folder / "salt"
    folder.mkdir()
    settings = {
        "id": "w1",
        "root_dir": str(folder),
        "module_dirs": [str(REPO / "states")],
        "saltern": {"settings": str(site.settings)},
        "file_client": "local",
        "file_roots": {"base": [str(site.folder / "sls")]},
        "log_file": "salt.log",
        "enable_gpu_grains": False,
        "enable_fqdns_grains": False,
    }
    (folder / "minion").write_text(yaml.safe_dump(settings))
    return folder / "minion"


@pytest.fixture(scope="module")
def caller(minion):
    """Salt's functions in this process, states among them."""
    # Not at the top: Salt leaves an importer behind that pytest cannot collect further files with.
    import salt.client
    import salt.config

    return salt.client.Caller(mopts=salt.config.minion_config(str(minion)))


@pytest.fixture(scope="module")
def apply(caller):
    """Apply one state; the `ret` of it."""

    def call(goal, *, test=False, **parameters):
        reply = caller.cmd("state.single", f"vmachines.{goal}", test=test, **parameters)
        assert isinstance(reply, dict), reply
        (ret,) = reply.values()
        return ret

    return call


@pytest.fixture(scope="module")
def settle(apply):
    """Apply a state three times, first as a dry run, and return the `ret` of the second."""

    def call(goal, **parameters):
        dry_run = apply(goal, test=True, **parameters)
        assert dry_run["result"] is None, dry_run
        done = apply(goal, **parameters)
        assert done["result"] is True, done
        assert without_digests(done["changes"]) == dry_run["changes"]
        for test in (False, True):
            again = apply(goal, test=test, **parameters)
            assert (again["result"], again["changes"]) == (True, {}), again
        return done

    return call


def without_digests(changes):
    """The changes that a dry run can know: the content of a saved disk is not known yet."""
    known = json.loads(json.dumps(changes))
    for slot in ("hda", "hdb"):
        if isinstance(new := known.get(slot, {}).get("new"), dict):
            new.pop("sha256", None)
            new.pop("size", None)
    return known


def test_life_of_a_vm(site, apply, settle, bootchain):
    """Made, paused, resumed, moved, crashed from outside, saved, started again, destroyed."""
    image = bootchain("state-life.raw", folder=site.images, variant="spin")
    first, second = site.saved_file("first"), site.saved_file("second")
    parameters = {
        "name": "state-life",
        "hda_image": f"file://{image}",
        "hda_save_to": f"file://{first}",
        "mem_size": 32,
    }

    dry_run = apply("running", test=True, **parameters)
    assert dry_run["comment"] == f"state-life would be running. {image.stat().st_size} bytes to fetch."
    made = settle("running", **parameters)
    assert made["changes"]["status"] == {"old": "absent", "new": "running"}
    assert made["changes"]["mem_size"] == {"old": None, "new": 32}
    assert settle("paused", name="state-life")["changes"] == {"status": {"old": "running", "new": "suspended"}}
    assert settle("running", name="state-life")["changes"] == {"status": {"old": "suspended", "new": "running"}}

    moved = {"hda_save_to": {"old": f"file://{first}", "new": f"file://{second}"}}
    parameters["hda_save_to"] = f"file://{second}"
    assert settle("running", **parameters)["changes"] == moved

    for test in (True, False):
        fixed = apply("running", test=test, **{**parameters, "cpu_count": 3})
        assert (fixed["result"], fixed["changes"]) == (False, {})
        assert "cpu_count 1 (asked for: 3)" in fixed["comment"]
        assert "vmachines.halted" in fixed["comment"]

    uuid = site.call("status", name="state-life")["uuid"]
    site.worker.hypervisor("kvm").power_off(uuid)  # this guest is deaf; the disk is kept, and halted saves it
    site.wait("state-life", "halted")
    halted = settle("halted", name="state-life")
    assert halted["changes"]["hda"]["new"]["saved_to"] == f"file://{second}"
    assert halted["changes"]["hda"]["new"]["sha256"] == sha256(second)
    assert f"file://{second} (sha256 {sha256(second)})" in halted["comment"]
    assert not first.exists()

    again = settle("running", name="state-life", cpu_count=2)  # off, it takes what could not be changed before
    assert again["changes"]["cpu_count"] == {"old": 1, "new": 2}
    gone = settle("absent", name="state-life")
    assert gone["changes"] == {"status": {"old": "running", "new": "absent"}}
    assert site.call("status", name="state-life")["code"] == "not_found"
    assert apply("halted", name="state-life")["result"] is True


def test_guest_that_hears_is_saved_where_the_state_says(site, settle, apply, bootchain):
    """`halted` in the middle of saving waits for the end of it."""
    image = bootchain("state-short.raw", folder=site.images, variant="key")
    place = f"file://{site.saved_file('state-short')}"
    begun = apply("running", name="state-short", hda_image=f"file://{image}", hda_save_to=place, mem_size=32, timeout=0)
    assert begun["result"] is True
    assert begun["changes"]["status"]["old"] == "absent"
    site.wait("state-short", "running")
    site.end("state-short")
    site.wait("state-short", "saving", "halted")
    assert apply("halted", name="state-short")["result"] is True
    assert read_counter(site.saved_file("state-short"), "qcow2") == 1
    again = apply("halted", name="state-short")
    assert (again["result"], again["changes"]) == (True, {})
    assert sha256(site.saved_file("state-short")) in again["comment"]
    late = apply("halted", name="state-short", hda_save_to="file:///elsewhere")
    assert late["result"] is False
    assert "not moved" in late["comment"]


def test_saved_vm_goes_on_from_its_save(site, settle, apply, bootchain):
    """Also once the worker would have forgotten a VM of a master; and only from_image begins a new life."""
    image = bootchain("state-goes-on.raw", folder=site.images, variant="key")
    place = site.saved_file("goes-on")
    parameters = {"hda_image": f"file://{image}", "hda_save_to": f"file://{place}", "mem_size": 32}
    settle("running", name="goes-on", **parameters)
    for boots in (2, 4):
        site.end("goes-on")
        save = f"file://{place}#sha256={site.wait('goes-on', 'halted')['disks']['hda']['sha256']}"
        said = f"It starts from its last save: {save}."
        assert said in apply("running", test=True, name="goes-on", **parameters)["comment"]
        again = settle("running", name="goes-on", **parameters)
        assert (said in again["comment"], list(again["changes"])) == (True, ["status"])
        site.end("goes-on")
        site.wait("goes-on", "halted")
        assert read_counter(place, "qcow2") == boots
        settle("running", name="goes-on")  # a state without parameters goes on as well
    site.end("goes-on")
    last = site.wait("goes-on", "halted")["disks"]["hda"]
    refused = apply("running", name="goes-on", hda_image="blank:1M")
    assert (refused["result"], "so hda_image cannot be changed" in refused["comment"]) == (False, True)
    new = settle("running", name="goes-on", from_image=True, **parameters)
    assert "last save" not in new["comment"]
    site.end("goes-on")
    other = Path(site.wait("goes-on", "halted")["disks"]["hda"]["saved_to"].removeprefix("file://"))
    assert (other != place, read_counter(other, "qcow2"), sha256(place)) == (True, 1, last["sha256"])


def test_disk_without_a_target_stays_between_two_applies(site, settle, apply, bootchain):
    image = bootchain("state-stays.raw", folder=site.images, variant="key")
    settle("running", name="state-stays", hda_image=f"file://{image}", mem_size=32)
    site.end("state-stays")
    reply = site.until(lambda: site.call("status", name="state-stays"), lambda reply: "kept" in reply["disks"]["hda"])
    assert apply("halted", name="state-stays")["comment"] == (
        f"state-stays is halted. hda is kept in {reply['disks']['hda']['kept']}."
    )
    again = settle("running", name="state-stays")
    assert "It starts from its kept disks." in again["comment"]
    refused = apply("running", test=True, name="state-stays", from_image=True)
    assert refused["result"] is True  # it runs already
    site.end("state-stays")
    site.until(lambda: site.call("status", name="state-stays"), lambda reply: "kept" in reply["disks"]["hda"])
    refused = apply("running", name="state-stays", from_image=True)
    assert (refused["result"], "a new life would discard them" in refused["comment"]) == (False, True)
    assert apply("halted", name="state-stays", hda_save_to="")["changes"]["hda"]["new"] == "discarded"
    assert apply("absent", name="state-stays")["result"] is True


@pytest.mark.parametrize(
    ("goal", "parameters", "words"),
    [
        ("running", {}, "hda_image"),
        ("paused", {}, "hda_image"),
        ("running", {"hda_image": "file:///etc/shadow"}, "outside"),
        ("running", {"hda_image": "blank:1G", "mem_size": "much"}, "mem_size"),
        ("running", {"hda_image": "blank:1G", "timeout": "soon"}, "timeout"),
        ("running", {"hda_image": "blank:1G", "hypervisor": "xen"}, "xen"),
        ("running", {"hda_image": "blank:1G", "mem_size": 10**7}, "10000000 MiB"),
    ],
)
def test_impossible_state_is_reported(apply, goal, parameters, words):
    for test in (True, False):
        ret = apply(goal, test=test, name="never", **parameters)
        assert (ret["result"], ret["changes"]) == (False, {})
        assert words in ret["comment"]
        assert "Traceback" not in ret["comment"]


def test_failed_start_shows_the_message_and_is_tried_again(site, apply, bootchain):
    parameters = {"name": "state-late", "hda_image": f"file://{site.images}/state-late.raw", "mem_size": 32}
    failed = apply("running", **parameters)
    assert failed["result"] is False
    assert failed["changes"]["status"] == {"old": "absent", "new": "failed to start"}
    assert site.call("status", name="state-late")["message"] in failed["comment"]
    bootchain("state-late.raw", folder=site.images, variant="spin")
    assert apply("running", **parameters)["changes"] == {"status": {"old": "failed to start", "new": "running"}}
    deaf = apply("halted", name="state-late", timeout=0.1)
    assert deaf["result"] is False
    assert "Not halted within 0.1 s" in deaf["comment"]
    assert apply("absent", name="state-late")["result"] is True


def test_sls_through_salt_call_and_its_exit_code(site, minion, bootchain):
    image = bootchain("sls.raw", folder=site.images, variant="spin")
    folder = site.folder / "sls"
    folder.mkdir()
    (folder / "good.sls").write_text(
        f"sls:\n  vmachines.running:\n    - hda_image: file://{image}\n    - mem_size: 32\n"
        "gone:\n  vmachines.absent:\n    - name: sls\n"
    )
    (folder / "bad.sls").write_text("bad:\n  vmachines.running: []\n")
    argv = [str(Path(sys.executable).with_name("salt-call")), "--local", "-c", str(minion.parent), "--out=json"]
    codes = {"good": 0, "bad": 1}
    for name, code in codes.items():
        command = [*argv, "--retcode-passthrough", "state.apply", name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode != 0) == bool(code), done.stdout + done.stderr
        assert all(ret["result"] is not bool(code) for ret in json.loads(done.stdout)["local"].values())


@pytest.mark.parametrize("goal", GOALS)
def test_examples_in_the_docstrings_are_right(caller, goal):
    """Salt itself compiles each SLS, and the state takes every parameter that the command line names."""
    text = caller.cmd("sys.state_doc", f"vmachines.{goal}")[f"vmachines.{goal}"]
    sls = re.search(r"^( +web01:\n(?: +.*\n)+)", text, re.MULTILINE)[1]  # Salt leaves out the directives
    (low,) = yaml.safe_load(sls)["web01"].items()
    assert low[0] == f"vmachines.{goal}"
    command = re.search(rf"salt-call state\.single vmachines\.{goal} (.*)", text)[1]
    named = {word.split("=")[0] for word in command.split()} | {key for pair in low[1] for key in pair}
    signature = caller.cmd("sys.state_argspec", f"vmachines.{goal}")[f"vmachines.{goal}"]["args"]
    assert named - {"test"} <= set(signature)


def test_state_starts_with_all_that_the_function_can(caller):
    function = set(caller.cmd("sys.argspec", "vmachines.start")["vmachines.start"]["args"])
    for goal in ("running", "paused"):
        state = set(caller.cmd("sys.state_argspec", f"vmachines.{goal}")[f"vmachines.{goal}"]["args"])
        assert state - {"timeout", "from_image"} == function - {"origin", "uuid", "generation"}


def test_grains_have_drivers_and_version(caller):
    grains = caller.cmd("grains.get", "vmachines")
    assert grains["hypervisors"] == ["kvm"]
    assert grains["version"] == caller.cmd("vmachines.version")["version"]
