"""States, mine and Salt's file server on the real stack, with the minion's own configuration, keys and master."""

import ast
import json
import re
import shlex
import subprocess
import threading

import pytest
import yaml

from devstack.guests import build_bootchain, read_counter
from devstack.layout import PYTHON, REPO
from tests.lib.support import eventually, sha256, virsh
from worker_service.state.record_store import RecordStore

GOALS = ("running", "paused", "halted", "absent")


@pytest.fixture(scope="module")
def salt_call(stack):
    """Runs words with `salt-call` as the stack's minion: the exit code, and what the function returned."""

    def call(*words):
        argv = [str(PYTHON.with_name("salt-call")), "-c", str(stack.layout.salt), "--out=json", "--retcode-passthrough"]
        done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False, timeout=180)
        assert done.stdout.strip(), done.stderr
        return done.returncode, json.loads(done.stdout)["local"]

    return call


@pytest.fixture(scope="module")
def applied(stack, salt_call):
    """Applies an SLS that the Salt master serves: the exit code, and the `ret` of its only state."""

    def call(sls, *, test=False):
        (stack.layout.files / "desired.sls").write_text(yaml.safe_dump(sls))
        return only(salt_call("state.apply", "desired", f"test={test}"))

    return call


def only(answer):
    """Exit code and the one `ret`."""
    code, states = answer
    assert isinstance(states, dict), states
    (ret,) = states.values()
    return code, ret


def status(stack, name):
    return stack.worker_api("GET", f"/vmachines/status?name={name}").body


def end_when_requested(stack, name):
    """A boot sector ignores the button. The test ends it after a shutdown was requested, so the halt is intended."""
    store, uuid = RecordStore(stack.layout.data_root), status(stack, name)["uuid"]

    def wait():
        eventually(lambda: store.read(uuid).shutdown_asked)
        virsh("destroy", uuid)

    threading.Thread(target=wait, daemon=True).start()


def test_vm_from_salts_file_server_through_an_sls(stack, applied):
    """The whole way: image and SLS from the Salt master, dry run, made, made again, saved, gone."""
    image = stack.layout.files / "images/from-salt.raw"
    build_bootchain(image, variant="spin")
    saved = stack.layout.saved / "from-salt.qcow2"
    parameters = {
        "from-salt": {
            "vmachines.running": [
                {"hda_image": "salt://images/from-salt.raw"},
                {"hda_save_to": f"file://{saved}"},
                {"mem_size": 32},
            ]
        }
    }
    code, dry_run = applied(parameters, test=True)
    assert (code, dry_run["result"]) == (0, None), dry_run
    assert dry_run["comment"] == f"from-salt would be running. {image.stat().st_size} bytes to fetch."
    assert dry_run["changes"]["status"] == {"old": "absent", "new": "running"}
    assert status(stack, "from-salt")["code"] == "not_found"

    code, made = applied(parameters)
    assert (code, made["result"], made["changes"]) == (0, True, dry_run["changes"]), made
    for test in (False, True):
        assert applied(parameters, test=test)[1]["changes"] == {}

    halted = {"from-salt": {"vmachines.halted": []}}
    end_when_requested(stack, "from-salt")
    code, ret = applied(halted)
    assert (code, ret["result"]) == (0, True), ret
    assert f"file://{saved} (sha256 {sha256(saved)})" in ret["comment"]
    assert read_counter(saved, "qcow2") == 1
    code, again = applied(halted)
    assert (code, again["result"], again["changes"]) == (0, True, {}), again
    assert applied({"from-salt": {"vmachines.absent": []}})[1]["changes"]["status"]["new"] == "absent"
    assert status(stack, "from-salt")["code"] == "not_found"


def test_impossible_state_is_an_exit_code(stack, applied):
    code, ret = applied({"never": {"vmachines.running": [{"hda_image": "salt://top.sls"}]}})
    assert (code != 0, ret["result"], ret["changes"]) == (True, False, {})
    assert "salt_roots" in ret["comment"]
    missing = {"never": {"vmachines.running": [{"hda_image": "salt://images/none.raw"}, {"mem_size": 32}]}}
    code, ret = applied(missing)
    assert (code != 0, ret["result"]) == (True, False)
    assert "not on Salt's file server" in ret["comment"]
    assert applied({"never": {"vmachines.absent": []}})[1]["result"] is True


def test_examples_of_the_states_are_a_life(stack, salt_call, applied):
    """Each SLS and each CLI Example of the docstrings, in the order of a life; the folders are the stack's own."""
    build_bootchain(stack.layout.images / "debian.qcow2", variant="spin")
    examples = {goal: example(stack, goal) for goal in GOALS}

    code, dry_run = only(salt_call(*examples["running"][1]))
    assert (code, dry_run["result"]) == (0, None), dry_run
    assert dry_run["changes"]["status"] == {"old": "absent", "new": "running"}
    code, made = applied(examples["running"][0])
    assert (code, made["changes"]["status"]) == (0, {"old": "absent", "new": "running"}), made
    assert status(stack, "web01")["status"] == "running"
    for goal, observed in (("paused", "suspended"), ("halted", "halted"), ("absent", "absent")):
        sls, command = examples[goal]
        if goal == "halted":
            end_when_requested(stack, "web01")
        code, ret = only(salt_call(*command))
        assert (code, ret["result"], ret["changes"]["status"]["new"]) == (0, True, observed), ret
        code, again = applied(sls)
        assert (code, again["result"], again["changes"]) == (0, True, {}), again
    assert read_counter(stack.layout.saved / "web01.qcow2", "qcow2") == 1


def example(stack, goal):
    """The SLS and the words of the CLI Example of a state."""
    tree = ast.parse((REPO / "states/_states/vmachines.py").read_text())
    text = next(
        ast.get_docstring(node) for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == goal
    )
    text = text.replace("/srv/images", str(stack.layout.images)).replace("/srv/saved", str(stack.layout.saved)) + "\n"
    sls = re.search(r"^( +web01:\n(?: +.*\n)+)", text, re.MULTILINE)[1]
    command = re.search(r"^ +salt-call (.*)$", text, re.MULTILINE)[1]
    return yaml.safe_load(sls), shlex.split(command)


def test_mine_has_the_capabilities_of_the_worker(stack, salt_call):
    """The minion sends it at its start, and on `mine.update`. The master is asked for it."""

    def mined():
        return salt_call("mine.get", "*", "vmachines.capabilities")[1].get(stack.layout.minion)

    eventually(mined)
    assert salt_call("mine.flush")[0] == 0
    assert mined() is None
    assert salt_call("mine.update")[0] == 0
    eventually(mined)
    mine = mined()
    assert mine["success"] is True
    assert mine == salt_call("vmachines.capabilities")[1]
    # Whose VMs lie where is not for every minion.
    assert salt_call("mine.get", "*", "vmachines.list")[1] == {}


@pytest.mark.parametrize("masters", [["127.0.0.1"], ["127.0.0.9", "127.0.0.1"]])
def test_first_master_that_answers_serves_the_file(stack, tmp_path, masters):
    """Calls the reader of `salt:` as the worker does. No server listens at 127.0.0.9."""
    (stack.layout.files / "images/several.raw").write_bytes(b"several" * 1000)
    (tmp_path / "minion").write_text(
        yaml.safe_dump({**yaml.safe_load((stack.layout.salt / "dev/minion.conf").read_text()), "master": masters})
    )
    argv = [str(PYTHON), "-m", "worker_service.transfer.salt_reader", str(tmp_path / "minion"), "images/several.raw"]
    done = subprocess.run([*argv, "base", "0"], cwd=REPO, capture_output=True, check=False, timeout=180)
    head, _, content = done.stdout.partition(b"\n")
    assert done.returncode == 0, done.stderr
    assert json.loads(head)["size"] == 7000
    assert content == b"several" * 1000
