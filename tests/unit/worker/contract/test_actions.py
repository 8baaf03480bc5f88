"""Commands on the wire: a master of 0.1.0 and a worker of today, and the reverse, by literal JSON."""

import dataclasses
import json
from pathlib import Path
from typing import get_args

import msgspec
import pytest

from master_service.planning.actions import action_of
from master_service.planning.outcomes import ONE_SHOT_VERB
from master_service.planning.vm import Command, Verb
from master_service.policy import accounts
from tests.unit.master.builders import SPEC, UUID, vm
from worker_service.api import openapi
from worker_service.contract import ACTIONS, Spec
from worker_service.core.errors import BadRequest
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
    assert validation.checked_spec(action.params, POLICY) == SENT


def test_start_in_words_reads_as_the_typed_one():
    """A person writes numbers and lists as text, in `salt worker1 vmachines.apply` or in a form."""
    given = json.loads(START)
    given["params"] |= {"cpu_count": "2", "soft_list": "nginx=1.22*", "hdb_image": None}
    assert validation.action({**given, "generation": "7"}) == validation.action(json.loads(START))


def test_schema_names_the_parameters_of_each_verb():
    schemas = openapi.components()["schemas"]
    shapes = {schema["$ref"].rpartition("/")[2] for schema in schemas["Action"]["anyOf"]}
    assert shapes == {shape.__name__ for shape in ACTIONS.values()}
    assert schemas["Action"]["discriminator"]["propertyName"] == "verb"
    assert schemas["StartAction"]["properties"]["params"] == {"$ref": "#/components/schemas/Spec"}


@pytest.mark.parametrize(("text", "params"), [(MODIFY, {"hda_save_to": ""}), *((PLAIN % verb, {}) for verb in VERBS)])
def test_worker_reads_the_other_commands_of_0_1(text, params):
    action = validation.action(json.loads(text))
    assert (action.verb, action.uuid, action.generation) == (json.loads(text)["verb"], UUID, 7)
    assert msgspec.to_builtins(action.params) == params


@pytest.mark.parametrize("verb", ["shutdown", "destroy"])
def test_time_limit_of_a_command_is_read(verb):
    action = validation.action({**json.loads(PLAIN % verb), "params": {"timeout_s": "2.5"}})
    assert action.params.timeout_s == 2.5


@pytest.mark.parametrize("params", [{"uuid": UUID}, {"generation": 7}, {"timeout_s": 1}, [], "now"])
def test_params_of_another_verb_are_refused(params):
    with pytest.raises(BadRequest, match=r"^(Unknown parameter: |This action is not right: Expected `object`)"):
        validation.action({**json.loads(PLAIN % "suspend"), "params": params})


def test_every_verb_of_the_master_has_an_action():
    assert set(get_args(Verb)) | {ONE_SHOT_VERB} == set(ACTIONS)


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


@pytest.mark.parametrize(
    "name", ["admin", "a", "ann.b-c_d", "x" * 63, "", "Ann", "1a", "a/b", "..", "a\n", "x" * 64, "ä"]
)
def test_every_account_is_a_safe_owner(name):
    """The name is the name of a folder in templates of the worker's settings."""
    if accounts.NAME.fullmatch(name):
        assert validation.owner(name) == name
    elif name:
        with pytest.raises(BadRequest, match="not the name of an account"):
            validation.owner(name)
