"""One command for several VMs: failures, exit codes, and the question before a destroy."""

import io
import json

import pytest
import typer

from master_service.cli.common import several
from master_service.cli.common.client import Exit, Failure
from master_service.cli.common.output import Format
from master_service.cli.common.several import Tries, confirm_destroy


def vm(name):
    return {"name": name, "status": "running", "worker": "w1", "problems": []}


def test_single_failure_is_raised():
    def fail(name):
        raise Failure(name)

    with pytest.raises(Failure, match="a"):
        Tries(["a", "a"], Format.TABLE).each(["a"], fail)


@pytest.mark.parametrize(
    ("codes", "code"),
    [({"b": Exit.FAILED}, 1), ({"a": Exit.TIMEOUT, "b": Exit.NOT_FOUND}, 4), ({"c": Exit.DENIED, "b": Exit.FAILED}, 5)],
)
def test_each_is_tried_and_the_largest_code_remains(capsys, codes, code):
    tries = Tries(["a", "b", "c"], Format.TABLE)

    def act(name):
        if name in codes:
            raise Failure(f"{name} failed.", codes[name])
        tries.done(vm(name))

    tries.each(tries.names, act)
    with pytest.raises(typer.Exit) as left:
        tries.end()
    out, err = capsys.readouterr()
    assert left.value.exit_code == code
    assert err.splitlines() == [f"saltern: {name} failed." for name in sorted(codes)]
    assert out.splitlines() == [f"{name} is running on w1." for name in "abc" if name not in codes]


def test_documents_of_several_are_one_list(capsys):
    tries = Tries(["a", "b"], Format.JSON)
    tries.each(tries.names, lambda name: tries.done(vm(name)))
    tries.end()
    assert json.loads(capsys.readouterr().out) == [vm("a"), vm("b")]


class Client:
    """A master without the VM `ghost`."""

    def get(self, path):
        name = path.rpartition("/")[2]
        if name == "ghost":
            raise Failure("There is no VM 'ghost'.", Exit.NOT_FOUND)
        return vm(name)


class Person(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(("stdin", "yes", "answer"), [(Person(), True, False), (io.StringIO(), False, False)])
def test_destroy_without_a_person_or_with_yes_asks_nothing(monkeypatch, stdin, yes, answer):
    monkeypatch.setattr("sys.stdin", stdin)
    monkeypatch.setattr(several.terminal, "confirm", lambda _question: answer)
    confirm_destroy(Client(), ["web01"], yes=yes)


@pytest.mark.parametrize("answer", [True, False])
def test_destroy_by_a_person_needs_a_yes(monkeypatch, answer):
    questions = []
    monkeypatch.setattr("sys.stdin", Person())
    monkeypatch.setattr(several.terminal, "confirm", lambda question: questions.append(question) or answer)
    if answer:
        confirm_destroy(Client(), ["web01", "ghost", "web02"], yes=False)
    else:
        with pytest.raises(Failure, match="Nothing was changed"):
            confirm_destroy(Client(), ["web01", "ghost", "web02"], yes=False)
    assert questions == ["Destroy web01 (running), web02 (running)? All disks are discarded; nothing is saved."]


def test_destroy_of_no_vm_is_not_confirmed(monkeypatch):
    monkeypatch.setattr("sys.stdin", Person())
    confirm_destroy(Client(), ["ghost"], yes=False)
