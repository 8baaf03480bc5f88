"""Lists of start parameters that frameworks need written out: each equals the contract's `Spec` or `MODIFIABLE`."""

import dataclasses
import inspect

import msgspec
import pytest
import typer

from master_service.api.protocol.schemas import CreateVM, DesiredVM, ModifyVM
from master_service.cli.commands import apply, create
from master_service.planning.actions import changed_settings
from master_service.planning.observed import ObservedStatus
from tests.unit.master.builders import vm
from worker_service.contract import GUEST_LISTS, MODIFIABLE, Changes, Spec

PLACING = ["worker", "labels", "protected"]
"""What a new VM has beside the parameters of `start`."""
FIELDS = {field.name: field for field in msgspec.structs.fields(Spec)}


def options(command):
    """The parameters of a command that are no options about the request itself."""
    about_the_request = {"context", "vm", "wait_for_it", "timeout_s", "dry_run", "form"}
    about_the_request |= {"label", "worker", "discard", "protect"}
    found = inspect.signature(command).parameters
    return {name: parameter.default for name, parameter in found.items() if name not in about_the_request}


def test_modifiable_parameters_are_parameters_of_start():
    assert set(MODIFIABLE) < set(FIELDS)


def test_create_request_has_the_fields_and_defaults_of_spec():
    assert [*FIELDS, *PLACING] == list(CreateVM.model_fields)
    minimal = {"name": "web", "hda_image": "file:/srv/images/web.qcow2"}
    assert CreateVM(**minimal).spec() == Spec(**minimal)


def test_apply_file_has_the_fields_of_create_and_a_state():
    assert list(DesiredVM.model_fields) == [*CreateVM.model_fields, "state"]


def test_modify_request_has_the_modifiable_parameters():
    assert list(ModifyVM.model_fields) == [*MODIFIABLE, "labels", "protected"]


def test_apply_changes_the_modifiable_parameters():
    assert set(apply._CHANGEABLE) == {*MODIFIABLE, "labels", "protected"}


def test_create_command_has_the_options_and_defaults_of_spec():
    found = options(create.create)
    assert set(found) == set(FIELDS)
    for name, default in found.items():
        expected = FIELDS[name].default
        if default is not None and expected is not msgspec.NODEFAULT:
            assert default == expected, name


def test_modify_command_has_the_modifiable_parameters():
    assert list(options(create.modify)) == list(MODIFIABLE)


class Client:
    """Keeps the body of the one request that a command sends."""

    def __init__(self):
        self.body = None

    def get(self, _path):
        return {"uuid": "u", "version": 1, "labels": {}}

    def post(self, _path, body):
        self.body = body
        raise typer.Exit

    def patch(self, _path, body, _version, _blocks_s):
        self.post(_path, body)


@pytest.mark.parametrize(
    ("command", "expected"), [(create.create, [*FIELDS, *PLACING]), (create.modify, [*MODIFIABLE])]
)
def test_command_sends_every_parameter_under_its_name(monkeypatch, command, expected):
    client = Client()
    monkeypatch.setattr(create, "client_of", lambda _context: client)
    values = {name: [f"value of {name}"] if name in GUEST_LISTS else f"value of {name}" for name in expected}
    given = {name: values[name] for name in options(command)}
    more = {"vm": "web"}
    if command is create.create:
        more = {"worker": "value of worker", "label": ["role=web"], "protect": True}
    with pytest.raises(typer.Exit):
        command(None, **given, **more)
    assert list(client.body) == expected
    written = set(expected) - {"labels", "protected"}
    assert {name: client.body[name] for name in written} == {name: values[name] for name in written}


def test_planner_sends_every_modifiable_parameter_that_differs():
    before = vm(observed=ObservedStatus.RUNNING)
    spec = msgspec.structs.replace(before.desired.spec, **{name: f"file:/new/{name}" for name in MODIFIABLE})
    after = dataclasses.replace(before, desired=dataclasses.replace(before.desired, spec=spec))
    assert changed_settings(after) == Changes(**{name: f"file:/new/{name}" for name in MODIFIABLE})
