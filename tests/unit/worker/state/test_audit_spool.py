"""The spool of audit events: kept until a watcher takes them, bounded, and never a reason to fail."""

import threading

import msgspec
import pytest

from worker_service.contract import AuditEvent, audit_tag
from worker_service.state import audit_spool
from worker_service.state.context import WorkerContext
from worker_service.watcher.loop import Watcher

DONE = {"success": True, "message": "It is destroyed.", "uuid": "u1", "name": "web01"}


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker.toml").write_text(f'data_root = "{tmp_path}/data"')
    return WorkerContext(tmp_path / "worker.toml")


def made(verb="destroy", given=None, reply=DONE, **more):
    return audit_spool.audit_event("worker-api", "ops", verb, given or {}, reply, **more)


def test_audit_event_names_the_vm_and_no_other_parameter():
    given = {"name": "web01", "hda_image": "https://u:hush@host/a", "ssh_keys": ["hush"]}
    refused = {"success": False, "message": "https://u:hush@host/a is refused", "code": "policy"}
    event = made("start", given, refused, address="10.0.0.1")
    assert (event.name, event.uuid, event.success, event.code, event.address) == (
        "web01",
        "",
        False,
        "policy",
        "10.0.0.1",
    )
    assert b"hush" not in msgspec.json.encode(event)
    assert made(given={"uuid": ["odd"], "name": "\ud800" * 999}, reply={"success": True}).name == "?" * 255
    for name in ("https://u:hush@host/a", "https://host/a?sig=hush", "u:my hush@host"):
        assert b"hush" not in msgspec.json.encode(made("start", {"name": name}, refused))


@pytest.mark.parametrize("verb", ["list", "status", "plan", "version", "capabilities", "cache"])
def test_read_only_verbs_make_no_audit_event(verb, worker):
    assert made(verb) is None
    worker.record_audit_event(None)
    assert worker.audit_spool.take() == []


def test_watcher_publishes_each_audit_event_once(worker):
    events = []
    watcher = Watcher(worker, "w1", lambda tag, data: events.append((tag, dict(data))))
    watcher.publish_audit()
    worker.record_audit_event(made())
    worker.record_audit_event(made("suspend"))
    watcher.publish_audit()
    watcher.publish_audit()
    assert [tag for tag, _ in events] == [audit_tag("w1")] * 2
    assert [msgspec.convert(data, AuditEvent).verb for _, data in events] == ["destroy", "suspend"]


def test_parallel_interfaces_lose_no_audit_event(worker):
    def call(caller):
        for number in range(50):
            worker.audit_spool.append(made(given={"name": f"{caller}-{number}"}, reply={"success": True}))

    threads = [threading.Thread(target=call, args=(caller,)) for caller in range(8)]
    for thread in threads:
        thread.start()
    taken = []
    while any(thread.is_alive() for thread in threads):
        taken += worker.audit_spool.take()
    taken += worker.audit_spool.take()
    assert sorted(event.name for event in taken) == sorted(
        f"{caller}-{number}" for caller in range(8) for number in range(50)
    )


def test_spool_without_a_watcher_is_bounded(worker, monkeypatch, caplog):
    monkeypatch.setattr(audit_spool, "_MAX_BYTES", 2000)
    for _ in range(100):
        worker.audit_spool.append(made())
    assert 2000 < worker.audit_spool._path.stat().st_size < 2500
    assert "no watcher has read it" in caplog.text
    assert len(worker.audit_spool.take()) > 5
    worker.audit_spool.append(made())
    assert len(worker.audit_spool.take()) == 1


def test_unwritable_or_unreadable_spool_stops_no_verb(worker, caplog):
    worker.audit_spool._path.write_bytes(b'garbage\n{"door": "roof"}\n' + msgspec.json.encode(made()) + b"\n\xff\n")
    assert [event.verb for event in worker.audit_spool.take()] == ["destroy"]
    worker.audit_spool._path.unlink()
    worker.audit_spool._path.mkdir()
    worker.record_audit_event(made())
    assert "could not be written" in caplog.text
    assert worker.audit_spool.take() == []


def test_actor_of_a_local_call_is_its_user(monkeypatch):
    monkeypatch.setenv("SUDO_USER", "alice")
    assert audit_spool.local_user() == "sudo_alice"
    monkeypatch.delenv("SUDO_USER")
    assert audit_spool.local_user()
