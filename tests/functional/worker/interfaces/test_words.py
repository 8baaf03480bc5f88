"""Names on the command line of Salt, in SLS and in HTTP: a word that YAML made a number of destroys no other VM."""

import inspect
import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from tests.functional.worker.serving import write_tokens
from worker_service.api.app import create_app
from worker_service.api.auth import TokenFile
from worker_service.contract.words import HOW, yaml_reading
from worker_service.core.settings import ApiSettings

NO_WORDS = {
    "cpu_count", "mem_size", "run_agent", "generation", "timeout_s", "preview", "pin", "cancel", "admin", "view_only",
    "actions", "tombstones", "origin",
}  # fmt: skip
"""The parameters of all functions that are numbers, booleans, mappings or lists of commands."""

READ_OTHERWISE = """
    0042 0007042 42 0x2a 0b1 1.10 1. 1e3 1_000 0x_1 on off yes No true False null Null None 2024-01-01 12:30:00 .5
    .inf .nan ~ -1 1.5e+3 0o17 0008
"""
OLD = {"7042": "6d6c7f0e-0000-4000-8000-000000007042", "1.1": "6d6c7f0e-0000-4000-8000-000000000011"}
"""VMs of an earlier version, whose names are no words in YAML. A master sends them with their uuid."""


IMAGE = "blank:1G"


@pytest.fixture(scope="module")
def old_vms(site):
    actions = [
        {"verb": "start", "uuid": uuid, "generation": 1, "params": {"name": name, "hda_image": IMAGE, "mem_size": 16}}
        for name, uuid in OLD.items()
    ]
    assert site.call("apply", actions=actions)["success"]
    for name in OLD:
        site.wait(name, "running")


@pytest.fixture(scope="module")
def salt_reads(modules):
    """Run a command line with Salt's own reading of its words."""
    import salt.minion
    import salt.utils.args

    def run(function, *words):
        found = modules[f"vmachines.{function}"]
        arguments, keywords = salt.minion.load_args_and_kwargs(found, salt.utils.args.parse_input(words))
        return found(*arguments, **keywords)

    return run


def names(site):
    return {vm["name"] for vm in site.call("list")["vmachines"]}


def test_other_value_for_a_word_is_refused_everywhere(modules, old_vms):
    for name in modules:
        if name.startswith("vmachines."):
            known = inspect.signature(modules[name]).parameters
            good = {key: value for key, value in {"name": "7042", "hda_image": IMAGE}.items() if key in known}
            for word, value in itertools.product(known.keys() - NO_WORDS, (42, 0, 1.1, True, False, [1], {"a": 1})):
                reply = modules[name](**{**good, word: value})
                assert reply.get("code") == "bad_request", (name, word, value, reply)
                assert HOW in reply["message"], (name, word, value, reply)


@pytest.mark.parametrize("name", READ_OTHERWISE.split())
def test_name_on_a_command_line_is_the_word_or_refused(site, old_vms, salt_reads, name):
    for verb in ("destroy", "shutdown", "status", "suspend"):
        reply = salt_reads(verb, f"name={name}")
        assert reply["code"] in ("bad_request", "not_found"), reply
        assert HOW in reply["message"] or "names no VM" in reply["message"] or repr(name) in reply["message"], reply
    for word in (f"name={name}", f"""name='"{name}"'""", f'name="{name}"'):
        reply = salt_reads("start", word, f"hda_image={IMAGE}")
        assert reply["code"] == "bad_request", reply
        assert HOW in reply["message"] or "must match" in reply["message"] or "missing" in reply["message"], reply
    assert names(site) == set(OLD)


def test_quoted_name_is_the_word(site, old_vms, salt_reads):
    for name, uuid in OLD.items():
        assert salt_reads("status", f'name="{name}"')["uuid"] == uuid
    assert salt_reads("status", "name='0007042'")["code"] == "not_found"


def test_new_name_is_refused_through_http(site, modules):
    app = create_app(ApiSettings(allowed_hosts=("testserver",)), modules, TokenFile(write_tokens(site)), site.worker)
    client = TestClient(app, headers={"Authorization": "Bearer all"})
    for way in ({"params": {"name": "0042", "hda_image": IMAGE}}, {"json": {"name": "0042", "hda_image": IMAGE}}):
        answer = client.post("/vmachines/start", **way)
        assert (answer.status_code, HOW in answer.json()["message"]) == (400, True), answer.text
    answer = client.post("/vmachines/destroy", json={"name": 7042})
    assert (answer.status_code, HOW in answer.json()["message"]) == (400, True), answer.text
    assert client.get("/vmachines/status", params={"name": "0007042"}).status_code == 404


def test_salt_makes_nothing_else_of_other_words():
    """`yaml_reading` knows all that Salt's command line reads as something else."""
    words = [
        *READ_OTHERWISE.split(),
        "web01",
        "1.2.3",
        "y",
        "n",
        "0042-db",
        "0b_",
        "1__0",
        "TRUE",
        "NULL",
        "none",
        "12:30",
    ]
    import salt.utils.args

    changed = {word for word in words if salt.utils.args.yamlify_arg(word) != word}
    assert {"0042", "on", "None"} <= changed
    assert {word for word in changed if not yaml_reading(word)} == set()


@pytest.fixture
def salt_call(site, minion_config):
    """The real command, which reads its words and the SLS of a folder."""
    folder = site.folder / "sls"
    (folder / "conf").mkdir(parents=True)
    (folder / "conf/minion").write_text(f"{minion_config.read_text()}file_roots: {{base: [{folder}]}}\n")
    argv = [str(Path(sys.executable).with_name("salt-call")), "--local", "-c", str(folder / "conf"), "--out=json"]

    def call(*words):
        done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
        return json.loads(done.stdout)["local"]

    call.folder = folder
    return call


def test_salt_call_and_sls_destroy_no_other_vm(site, old_vms, salt_call):
    refused = salt_call("vmachines.destroy", "name=0007042")
    assert (refused.get("code"), HOW in refused["message"]) == ("bad_request", True), refused
    replies = [salt_call("state.single", "vmachines.absent", "name=0007042")]
    for text in ("one: {vmachines.absent: [{names: [1.10, 7042]}]}", "0007042: {vmachines.absent: []}"):
        (salt_call.folder / "words.sls").write_text(text)
        replies.append(salt_call("state.apply", "words"))
    assert all("not formed as a string" in str(reply) for reply in replies), replies  # Salt refuses them itself
    assert names(site) == set(OLD)
