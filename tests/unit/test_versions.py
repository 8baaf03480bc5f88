"""Version N and N+1 on two machines, or one after the other: reports and records are read, commands are checked."""

import copy
from datetime import UTC, datetime

import msgspec
import pytest

from master_service.reconciler.poller import sort_answers
from worker_service.contract import ActionResult, ApplyReply, Code, DestroyAction, HaltCause, ListReply, Spec, VMStatus
from worker_service.core.errors import BadRequest
from worker_service.core.settings import ImagePolicy
from worker_service.operations import desired_state, validation, verbs
from worker_service.state.context import WorkerContext
from worker_service.state.record import Phase, Record
from worker_service.state.record_store import RecordStore

UUID = "6d6c7f0e-0000-4000-8000-00000000000{}"
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
OLDEST_STATUS = {
    "uuid": UUID.format(1), "name": "web01", "status": "running", "message": "", "generation": 1, "since": "2026",
}  # fmt: skip
OLDEST_LIST = {
    "vmachines": [OLDEST_STATUS],
    "foreign": [{"uuid": UUID.format(2), "name": "x", "state": "running"}],
    "tombstones": {},
    "capacity": {
        "hypervisors": ["kvm"], "arches": ["x86_64"], "cpu_total": 1, "cpu_free": 1, "mem_total": 1, "mem_free": 1,
        "disk_free": 1,
    },
    "version": "0.1.0",
}  # fmt: skip
"""The status of a worker of the first version: each later field of the contract has a default."""


def of_tomorrow():
    """The list of a worker that knows more, in every place where something can be added."""
    text = copy.deepcopy(OLDEST_LIST)
    status = text["vmachines"][0]
    status |= {
        "spec": {"name": "web01", "hda_image": "file:/a", "tpm": True},
        "progress": {"phase": "fetch", "mood": "good"},
        "disks": {"hda": {"size": 1, "scrubbed": True}},
        "software": [{"name": "nginx", "licence": "BSD"}],
        "halt_cause": "eaten by a dog",
    }
    for place in (text, status, text["foreign"][0], text["capacity"]):
        place["from_tomorrow"] = {"x": 1}
    return text


def test_report_of_a_newer_worker_is_read():
    replies, refused = sort_answers({"w1": of_tomorrow()}, 1 << 20)
    assert refused == {}
    (status,) = replies["w1"].vmachines
    assert status.spec == Spec(name="web01", hda_image="file:/a")
    assert status.halt_cause is HaltCause.UNKNOWN
    assert status == msgspec.convert(of_tomorrow()["vmachines"][0], VMStatus)  # the same as an event


def test_report_of_an_older_worker_is_read():
    reply = msgspec.convert(OLDEST_LIST, ListReply)
    assert (reply.protocol, reply.vmachines[0].spec, reply.capacity.images) == (1, None, ())


def test_unknown_code_of_a_newer_worker_is_a_refusal():
    text = {"success": False, "message": "0 of 1 done.", "results": [
        {"success": False, "message": "The moon is full.", "code": "full_moon", "phase_of_the_moon": 1}
    ]}  # fmt: skip
    result = ActionResult(success=False, message="The moon is full.", code=Code.INTERNAL)
    assert msgspec.convert(text, ApplyReply).results == (result,)


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"')
    return WorkerContext(tmp_path / "worker.toml")


TOO_NEW = {
    "a field": ({"verb": "destroy", "uuid": UUID.format(1), "generation": 1, "deadline_s": 5}, "deadline_s"),
    "a verb": ({"verb": "snapshot", "uuid": UUID.format(1), "generation": 1}, "'snapshot'"),
    "a parameter": ({"verb": "suspend", "uuid": UUID.format(1), "generation": 1, "params": {"to": "disk"}}, ": to."),
    "a parameter of a VM": (
        {"verb": "start", "uuid": UUID.format(1), "generation": 1, "params": {
            "name": "web01", "hda_image": "blank:1G", "tpm": True,
        }},
        "tpm",
    ),
    "a setting": ({"verb": "modify", "uuid": UUID.format(1), "generation": 1, "params": {"tpm": True}}, "tpm"),
    "another shape": (["destroy"], "object"),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOO_NEW)
def test_order_of_a_newer_master_is_refused_by_itself(worker, kind):
    """The other commands of its batch are carried out: here destroys of unknown VMs, which are confirmed."""
    action, word = TOO_NEW[kind]
    if kind == "a setting":
        record = Record(
            uuid=UUID.format(1), spec=Spec(name="web01", hda_image="blank:1G"), generation=1, phase=Phase.DONE,
            phase_since=NOW, created_at=NOW,
        )  # fmt: skip
        worker.store.create(record)
    others = [{"verb": "destroy", "uuid": UUID.format(n), "generation": 1} for n in (2, 3)]
    reply = verbs.apply(worker, actions=[others[0], action, others[1]])
    assert [result["success"] for result in reply["results"]] == [True, False, True]
    refusal = reply["results"][1]
    text = f"2 of 3 done. First failure: {refusal['message']}"
    assert (reply["success"], reply["message"]) == (False, text)
    assert (refusal["code"], refusal.get("uuid")) == (
        "bad_request",
        None if kind == "another shape" else UUID.format(1),
    )
    assert word in refusal["message"]
    assert refusal["message"].count(".") >= 2  # the problem, its cause, and the advice
    msgspec.convert(reply, ApplyReply)


def test_interfaces_refuse_unknown_fields():
    with pytest.raises(BadRequest, match="tpm"):
        validation.spec({"name": "web01", "hda_image": "blank:1G", "tpm": True}, ImagePolicy())
    with pytest.raises(desired_state.GoalError, match="tpm"):
        desired_state.parse_parameters({"tpm": True})
    with pytest.raises(BadRequest, match="actions"):
        validation.actions({"verb": "destroy"})
    good = {"verb": "destroy", "uuid": UUID.format(1), "generation": 1}
    assert validation.action(good) == DestroyAction(uuid=UUID.format(1), generation=1)


def test_record_of_a_newer_worker_keeps_its_fields(tmp_path):
    """After a downgrade the VM is there as before, and after the next upgrade all of its fields."""
    store = RecordStore(tmp_path / "data")
    store.prepare()
    made = Record(
        uuid=UUID.format(1), spec=Spec(name="web01", hda_image="file:/a"), generation=1, phase=Phase.UP,
        phase_since=NOW, created_at=NOW,
    )  # fmt: skip
    store.create(made)
    path = store.folder(made.uuid) / "record.json"
    raw = msgspec.json.decode(path.read_bytes())
    raw |= {"moved_from": "w7", "disks": {"hda": {"base": "0f", "scrubbed": True}, "hdz": {"bus": "nvme"}}}
    raw["spec"] |= {"tpm": {"version": 2}, "mem_size": 1024}
    path.write_bytes(msgspec.json.encode(raw))
    (read,) = store.all()
    assert (read.name, read.spec.mem_size, read.disks["hda"].base) == ("web01", 1024, "0f")

    def change(record):
        spec = msgspec.structs.replace(record.spec, mem_size=256, hda_save_to="file:/b")
        return msgspec.structs.replace(record, generation=2, spec=spec)

    store.update(made.uuid, change)
    kept = msgspec.json.decode(path.read_bytes())
    assert kept == {**raw, "generation": 2, "spec": {
        "name": "web01", "hda_image": "file:/a", "mem_size": 256, "hda_save_to": "file:/b", "tpm": {"version": 2},
    }, "targets": {"hda": {
        "uri": {"text": "file:/b", "scheme": "file", "netloc": "", "path": "/b"},
        "form": {"format": "qcow2", "compress": None},
    }}}  # fmt: skip
