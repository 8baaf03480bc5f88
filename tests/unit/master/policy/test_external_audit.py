"""Audit entries for actions past the master: every way to name a VM, and untrusted text of minions."""

import ast
from datetime import UTC, datetime

import msgspec
import pytest

from devstack.layout import REPO
from master_service.planning.outcomes import Outcome
from master_service.policy import external_audit
from worker_service.api.calls import SCOPE
from worker_service.contract import READ_ONLY_VERBS, AuditEvent

AT = datetime(2026, 1, 2, tzinfo=UTC)
UUID = "6d6c7f0e-0000-4000-8000-000000000001"
JOB = {"jid": "20260101000000000001", "user": "root", "tgt": "w1", "tgt_type": "glob", "minions": ["w1"]}
KWARG = {"__kwarg__": True}


def heard(fun, arg, **job):
    lines = external_audit.entries_from_job(JOB | {"fun": fun, "arg": arg} | job, AT)
    return [(line.verb, line.target, line.uuid, line.detail) for line in lines]


@pytest.mark.parametrize(
    ("verb", "arguments", "name", "uuid"),
    [
        ("destroy", [KWARG | {"name": "web01", "password": "hush"}], "web01", ""),
        ("destroy", [KWARG | {"name": 123}], "123", ""),
        ("destroy", [KWARG | {"name": "web01", "uuid": UUID}], "web01", UUID),
        ("destroy", [UUID], "", UUID),
        ("destroy", [UUID, "web01", 30], "web01", UUID),
        ("destroy", [None, "web01"], "web01", ""),
        ("destroy", ["name=web01"], "web01", ""),
        ("destroy", ["timeout_s=3", UUID], "", UUID),
        ("destroy", ["no uuid"], "", ""),
        ("modify", [UUID, KWARG | {"hda_save_to": "https://u:hush@host/a"}], "", UUID),
        ("start", ["web01", "https://u:hush@host/a"], "web01", ""),
        ("start", ["web01", "hda_image=https://u:hush@host/a"], "web01", ""),
        ("apply", [[{"verb": "destroy"}]], "", ""),
        ("cache_prefetch", ["https://u:hush@host/a"], "", ""),
        ("suspend", [], "", ""),
        ("suspend", "garbage", "", ""),
        ("suspend", [["web01"]], "", ""),
    ],
)
def test_vm_is_known_however_it_is_named(verb, arguments, name, uuid):
    assert heard(f"vmachines.{verb}", arguments) == [(verb, name, uuid, "on w1")]
    assert "hush" not in str(external_audit.entries_from_job(JOB | {"fun": f"vmachines.{verb}", "arg": arguments}, AT))


def test_positions_are_those_of_the_module():
    tree = ast.parse((REPO / "modules/vmachines.py").read_text())
    functions = {node.name.strip("_"): node for node in tree.body if isinstance(node, ast.FunctionDef)}
    for verb in set(SCOPE) - READ_ONLY_VERBS:
        names = [argument.arg for argument in functions[verb].args.args]
        expected = [] if verb.startswith("cache_") else external_audit._POSITIONS.get(verb, external_audit._USUAL)
        assert names[: len(expected)] == list(expected)
        assert not ({"uuid", "name"} & set(names)) or expected


def test_looks_are_the_verbs_that_a_reader_may_call():
    assert {verb for verb, scope in SCOPE.items() if scope == "read"} == READ_ONLY_VERBS


def test_read_only_call_makes_no_entry():
    for fun in ("test.ping", "vmachines.list", "vmachines.", "vmachines.Rm -rf", "vmachinesx.destroy", None, 7, {}):
        assert heard(fun, []) == []


def test_compound_call_and_several_minions():
    funs = ["saltutil.find_job", "vmachines.suspend", "vmachines.list", "vmachines.resume"]
    arguments = [["1"], [KWARG | {"name": "a"}], [], [UUID]]
    assert heard(funs, arguments, minions=["w1", "w2"], tgt="*") == [
        ("suspend", "a", "", "on w1"),
        ("suspend", "a", "", "on w2"),
        ("resume", "", UUID, "on w1"),
        ("resume", "", UUID, "on w2"),
    ]
    assert heard(["vmachines.suspend"], []) == [("suspend", "", "", "on w1")]
    assert heard("vmachines.suspend", [], minions=[], tgt=["w3"]) == [("suspend", "", "", "on w3")]
    assert len(heard("vmachines.suspend", [], minions=[f"w{n}" for n in range(5000)])) == 1000


@pytest.mark.parametrize(
    ("answer", "refused"),
    [
        ({"success": True, "message": "done"}, None),
        ({"success": False, "message": "There is no VM\nnamed x."}, "There is no VM named x."),
        ("Traceback\nKeyError: 'x'", "answers: KeyError: 'x'"),
        ("'vmachines.destroy' is not available.", "answers: 'vmachines.destroy' is not available."),
        (None, "answers: None"),
        ({"success": "yes"}, "answers: {'success': 'yes'}"),
        ({"success": False, "message": "x" * 10_000}, "x" * 200),
        ("a\0\ud800", "answers: a?"),
    ],
)
def test_return_gives_its_result(answer, refused):
    assert external_audit.results_from_return({"fun": "vmachines.destroy", "return": answer}) == [
        external_audit.ExternalResult(verb="destroy", refused=refused)
    ]


def test_return_of_a_compound_call_gives_results():
    good, bad = {"success": True, "message": ""}, {"success": False, "message": "no"}
    funs = ["vmachines.suspend", "vmachines.list", "vmachines.resume"]
    expected = [
        external_audit.ExternalResult(verb="suspend", refused=None),
        external_audit.ExternalResult(verb="resume", refused="no"),
    ]
    for answer in (dict(zip(funs, (good, {}, bad), strict=True)), [good, {}, bad]):
        assert external_audit.results_from_return({"fun": funs, "return": answer}) == expected
    assert external_audit.results_from_return({"fun": "vmachines.list", "return": {}}) == []
    assert [ended.refused for ended in external_audit.results_from_return({"fun": funs, "return": "x"})] == [
        "answers: None"
    ] * 2


EVENT = AuditEvent(
    at="2026",
    interface="worker-api",
    actor="ops",
    verb="destroy",
    name="web01",
    uuid=UUID,
    address="10.0.0.1",
    success=True,
)


def test_worker_event_becomes_an_audit_entry():
    line = external_audit.entry_from_worker_event("w1", EVENT, AT)
    assert (line.actor.name, line.actor.interface, line.actor.address) == ("ops@w1", "worker-api", "10.0.0.1")
    assert (line.verb, line.target, line.uuid, line.outcome) == ("destroy", "web01", UUID, Outcome.DONE)
    assert line.detail == "on w1 at 2026"
    refused = external_audit.entry_from_worker_event(
        "w1", msgspec.structs.replace(EVENT, success=False, code="not_found"), AT
    )
    assert (refused.outcome, refused.detail) == (Outcome.REFUSED, "on w1 at 2026: not_found")


@pytest.mark.parametrize("field", ["at", "actor", "name", "uuid", "address", "code"])
def test_worker_event_is_bounded_and_sanitized(field):
    event = msgspec.structs.replace(EVENT, success=False, **{field: "a\0\n\ud800\x1b[31m" * 10_000})
    line = external_audit.entry_from_worker_event("w" * 255, event, AT)
    texts = [line.actor.name, line.actor.address, line.target, line.uuid, line.detail]
    assert [len(word) <= most for word, most in zip(texts, (63, 45, 255, 36, 400), strict=True)] == [True] * 5
    assert all(word.isprintable() for word in texts)
    assert "@" in line.actor.name


@pytest.mark.parametrize("verb", ["list", "status", "", "x" * 33, "de stroy", "destroy\n"])
def test_invalid_worker_event_makes_no_entry(verb):
    assert external_audit.entry_from_worker_event("w1", msgspec.structs.replace(EVENT, verb=verb), AT) is None


@pytest.mark.parametrize(("target", "minion"), [("web*", "web*"), ("", ""), (None, "None")])
def test_job_without_a_list_of_minions_names_its_target(target, minion):
    job = {"fun": "vmachines.destroy", "arg": [], "tgt": target, "user": "ops", "jid": "1"}
    (entry,) = external_audit.entries_from_job(job, AT)
    assert entry.detail == external_audit.minion_label(minion)
