"""Commands on the wire: a master of 0.1.0 and a worker of today, and the reverse, by literal JSON."""

import dataclasses
import json
from pathlib import Path

import msgspec
import pytest

from master_service.planning.planner import action_of
from master_service.planning.vm import Command
from tests.unit.master.builders import SPEC, UUID, vm
from worker_service.contract import Spec
from worker_service.core.settings import ImagePolicy
from worker_service.operations import validation

START = """{"verb": "start", "uuid": "11111111-2222-4333-8444-555555555555", "generation": 7, "params": {
    "name": "web01", "hda_image": "blank:20G", "hda_save_to": "file:/srv/saved/web.qcow2",
    "cpu_count": 2, "soft_list": ["nginx=1.22*"], "run_policy": "always"}}"""
MODIFY = """{"verb": "modify", "uuid": "11111111-2222-4333-8444-555555555555", "generation": 7, "params": {
    "hda_save_to": ""}}"""
PLAIN = """{"verb": "%s", "uuid": "11111111-2222-4333-8444-555555555555", "generation": 7}"""
VERBS = ["suspend", "resume", "shutdown", "destroy", "save_retry"]
POLICY = ImagePolicy(write_roots=(Path("/srv/saved"),))
SENT = Spec(
    name="web01", hda_image="blank:20G", hda_save_to="file:/srv/saved/web.qcow2", cpu_count=2,
    soft_list=("nginx=1.22*",), run_policy="always",
)  # fmt: skip


def test_worker_reads_the_start_of_0_1():
    action = validation.action(json.loads(START))
    assert (action.verb, action.uuid, action.generation) == ("start", UUID, 7)
    assert validation.spec(action.params, POLICY) == SENT


@pytest.mark.parametrize(("text", "params"), [(MODIFY, {"hda_save_to": ""}), *((PLAIN % verb, {}) for verb in VERBS)])
def test_worker_reads_the_other_commands_of_0_1(text, params):
    action = validation.action(json.loads(text))
    assert (action.verb, action.uuid, action.generation) == (json.loads(text)["verb"], UUID, 7)
    assert action.params == params


def test_master_sends_the_start_of_0_1():
    sent = action_of(vm(spec=SENT), Command(verb="start", generation=7))
    assert json.loads(msgspec.json.encode(sent)) == json.loads(START)


def test_master_sends_the_other_commands_of_0_1():
    modified = vm(spec=msgspec.structs.replace(SPEC, hda_save_to=""))
    observed = dataclasses.replace(
        modified.observed, status=msgspec.structs.replace(modified.observed.status, spec=SPEC)
    )
    sent = action_of(dataclasses.replace(modified, observed=observed), Command(verb="modify", generation=7))
    assert json.loads(msgspec.json.encode(sent)) == json.loads(MODIFY)
    for verb in set(VERBS) - {"save_retry"}:
        sent = action_of(vm(), Command(verb=verb, generation=7))
        assert json.loads(msgspec.json.encode(sent)) == json.loads(PLAIN % verb)
