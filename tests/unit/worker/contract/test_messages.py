"""Messages between worker and master: reading those of other versions, tags of events, origins of pages."""

import msgspec
import pytest

from worker_service.contract import (
    AuditEvent,
    Capacity,
    Code,
    HaltCause,
    ImagePlan,
    Spec,
    Status,
    Taken,
    VMStatus,
    alive_tag,
    audit_tag,
    decode_audit_event,
    destroyed_tag,
    event_tag,
    origin_of,
)

EVENT = {"at": "2026-01-02T03:04:05Z", "interface": "salt-call", "actor": "root", "verb": "start", "success": True}


def test_audit_event_is_read_as_it_is_written():
    event = decode_audit_event(EVENT)
    assert isinstance(event, AuditEvent)
    assert (event.interface, event.actor, event.verb) == ("salt-call", "root", "start")


def test_audit_event_of_0_1_0_is_read_with_todays_names():
    old = {**EVENT, "door": "facade", "who": "operator"}
    del old["interface"], old["actor"]
    event = decode_audit_event(old)
    assert (event.interface, event.actor) == ("worker-api", "operator")


def test_report_of_any_worker_has_no_secret():
    """The worker's own is made of records. A worker of version 0.1 sends what its users gave."""
    uri = "https://h/a?X-Amz-Signature=c4nary"
    places = {"hda": {"save_to": uri, "saved_to": uri}}
    given = {
        "uuid": "u", "name": "a", "status": "running", "generation": 1, "since": "", "disks": places,
        "message": f"{uri} answered 403.", "problem": f"{uri} broke off", "vnc": "wss://me:c4nary@h/",
        "spec": {"name": "a", "hda_image": uri, "cd_image": uri, "user_data": uri},
    }  # fmt: skip
    status = msgspec.convert(given, VMStatus)
    assert b"c4nary" not in msgspec.json.encode(status)
    assert msgspec.json.encode(status).count(b"https://h/a?X-Amz-Signature=***") == 7
    numbers = dict.fromkeys(("cpu_total", "cpu_free", "mem_total", "mem_free", "disk_free"), 1)
    capacity = msgspec.convert({"hypervisors": [], "arches": [], **numbers, "images": [uri, "file:/a"]}, Capacity)
    assert capacity.images == ("https://h/a?X-Amz-Signature=***", "file:/a")


@pytest.mark.parametrize("data", [None, 1, "text", [], {}])
def test_audit_event_that_is_none_is_refused(data):
    with pytest.raises(msgspec.ValidationError):
        decode_audit_event(data)


def test_code_and_cause_of_a_newer_worker_are_read():
    assert msgspec.convert("from_tomorrow", Code) is Code.INTERNAL
    assert msgspec.convert("from tomorrow", HaltCause) is HaltCause.UNKNOWN


@pytest.mark.parametrize(
    ("parameters", "seed", "agent"),
    [
        ({}, False, False),
        ({"hostname": "a"}, True, False),
        ({"ssh_keys": ("ssh-ed25519 AAAA",)}, True, False),
        ({"user_data": "https://host/a"}, True, False),
        ({"minion_master": "salt"}, True, False),
        ({"run_agent": True}, True, True),
        ({"soft_list": ("vim",)}, True, True),
    ],
)
def test_seed_is_needed_for_data_of_a_guest(parameters, seed, agent):
    spec = Spec(name="a", hda_image="file:/a", **parameters)
    assert (spec.wants_seed, spec.wants_agent) == (seed, agent)


def test_tags_name_the_minion_and_the_vm():
    assert event_tag("w1", "u", Status.FAILED_TO_START) == "vmachines/w1/u/failed_to_start"
    assert alive_tag("w1") == "vmachines/w1/alive"
    assert audit_tag("w1") == "vmachines/w1/audit"
    assert destroyed_tag("w1", "u") == "vmachines/w1/u/destroyed"


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("https://Host.Example:443/a", "https://host.example"),
        ("http://host:80", "http://host"),
        ("http://host:443/", "http://host:443"),
        ("https://host:8443/a?b#c", "https://host:8443"),
    ],
)
def test_origin_is_as_browsers_write_it(url, origin):
    assert origin_of(url) == origin


def test_what_is_taken_is_added():
    assert sum((Taken(vms=1, cpus=2, mem=64), Taken(vms=1, mem=32)), Taken()) == Taken(vms=2, cpus=2, mem=96)


def test_secret_in_the_uri_of_a_planned_image_is_masked():
    assert ImagePlan(disk="hda", uri="https://me:hush@host/a.qcow2", cached=False).uri == "https://***@host/a.qcow2"
