"""The command line prints nothing that controls a terminal, whatever users, workers and masters wrote."""

import json

import pytest
import yaml

from master_service.cli.common import client
from worker_service.contract import Status

ATTACK = "\x1b]0;owned\x07\x9b2J\x7f\u202eEVIL\u2066\ufeff\r\nok   all: is well"
DOCUMENTS = {"json": json.loads, "yaml": yaml.safe_load}


def poisoned(value):
    """Return an answer with the attack behind each text in it."""
    if isinstance(value, dict):
        return {key: poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [poisoned(each) for each in value]
    return value + ATTACK if isinstance(value, str) else value


@pytest.fixture
async def attacked(served, monkeypatch):
    """A master whose answers all have the attack in them, with a row of each kind."""
    vm = await served.create()
    await served.status("running")
    served.salt.workers["w1"].turn(vm["uuid"], Status.FAILED_TO_SAVE)
    await served.poll()
    read = client._json
    monkeypatch.setattr(client, "_json", lambda response: poisoned(read(response)))
    return served


COMMANDS = [
    ("list",), ("list", "--columns", "name,labels"), ("show", "web01"), ("workers",), ("plan",),
    ("history", "web01"), ("notices",), ("users",), ("tokens",), ("images",), ("doctor",), ("export",),
    ("drain", "w1", "--dry-run"), ("shutdown", "web01", "--dry-run"), ("start", "web01", "--no-wait"),
    ("modify", "web01", "--cd-image", "", "--dry-run"), ("tokens", "create", "label"), ("users", "contact"),
    ("users", "quota"), ("console-url", "web01"), ("users", "create", "uma", "--dry-run"),
    ("images", "prefetch", "https://host.test/image.qcow2", "--dry-run"), ("wait", "web01", "--timeout", "0"),
]  # fmt: skip


@pytest.mark.parametrize("form", [None, "wide", "name", "json", "yaml"])
async def test_output_is_printable(saltern, attacked, form):
    for words in COMMANDS:
        given = words if form is None else (*words, "-o", form)
        _, out, err = await saltern(*given)
        for line in (out + err).split("\n"):
            assert line.isprintable(), (given, line)
        assert not any(line.startswith("ok   all") for line in (out + err).split("\n")), given


@pytest.mark.parametrize("form", DOCUMENTS)
async def test_documents_keep_the_text(saltern, attacked, form):
    (vm,) = DOCUMENTS[form]((await saltern("list", "-o", form))[1])
    assert vm["name"] == f"web01{ATTACK}"


async def test_messages_of_errors_are_printable(saltern, attacked, monkeypatch):
    monkeypatch.setattr(client, "_error_message", lambda _: f"There is no VM {ATTACK}")
    code, _, err = await saltern("show", "ghost")
    assert (code, err.count("\n"), err.rstrip("\n").isprintable()) == (3, 1, True)
