"""The record of one VM: its disks and the names of their files."""

from datetime import UTC, datetime

import msgspec

from worker_service.contract import HaltCause, Spec
from worker_service.contract.uri_secrets import URI_PARAMETERS
from worker_service.state.command_rules import after_start
from worker_service.state.lifecycle import after_halt
from worker_service.state.record import NOT_SAVED, Disk, Phase, Record, with_disk, with_save

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SPEC = Spec(name="a", hda_image="file:/a")
RECORD = Record(uuid="u", spec=SPEC, generation=1, phase=Phase.UP, phase_since=NOW, created_at=NOW)


def test_disk_changes_alone():
    both = with_disk(with_disk(RECORD, "hda", base="a", virtual_size=1), "hdb", base="b")
    changed = with_disk(both, "hda", flat_size=3)
    assert changed.disks == {"hda": Disk(base="a", virtual_size=1, flat_size=3), "hdb": Disk(base="b")}


def test_save_is_noted_with_its_digest():
    flat = with_disk(RECORD, "hda", flat_sha256="0a", flat_size=3)
    saved = with_save(flat, "hda", "file:/s")
    disk = saved.disks["hda"]
    assert (disk.saved_to, disk.saved_sha256, disk.saved_size) == ("file:/s", "0a", 3)
    assert (disk.own_saves, saved.last_saves) == (("file:/s#sha256=0a",), {"hda": "file:/s#sha256=0a"})
    again = with_disk(saved, "hda", **NOT_SAVED, flat_sha256="0b")
    assert again.last_saves == saved.last_saves  # until the next one
    for _ in range(20):
        again = with_save(again, "hda", "file:/s")
    assert len(again.disks["hda"].own_saves) < 20


def test_record_of_0_2_keeps_a_disk_without_a_target():
    """It meant that the disk is discarded. Now it is kept, and only "" discards."""
    old = msgspec.json.decode(msgspec.json.encode(RECORD))
    old["disks"] = {"hda": {"base": "d", "sealed_sha256": "0a", "saved_to": "file:/s"}}
    read = msgspec.json.decode(msgspec.json.encode(old), type=Record)
    assert (read.save_to("hda"), read.disks_stay, read.origin) == (None, True, {})
    assert read.last_saves == {"hda": "file:/s#sha256=0a"}
    assert after_halt(read, HaltCause.GUEST) is Phase.KEPT
    old["spec"]["hda_save_to"] = ""
    read = msgspec.json.decode(msgspec.json.encode(old), type=Record)
    assert (read.disks_stay, after_halt(read, HaltCause.GUEST)) == (False, Phase.CLEANING)


def test_name_of_a_flattened_disk_is_recorded():
    assert Disk(flat_file="hda.flat.qcow2").flat_name("hda") == "hda.flat.qcow2"


def test_name_of_a_disk_that_0_1_flattened_says_its_form():
    assert Disk().flat_name("hda") == "hda.sealed.qcow2"


def test_record_of_0_1_loses_secrets_when_it_is_read():
    """And its VM starts again from its kept disks: the master has masked its own rows in the same way."""
    uri, hidden = ("https://h/a?X-Amz-Signature=" + value for value in ("c4nary", "***"))
    old = msgspec.json.decode(msgspec.json.encode(RECORD))
    old["spec"] |= {name: uri for name in URI_PARAMETERS if not name.endswith("_save_to")}
    old |= {"cd_uri": uri, "phase": "kept", "halt_cause": HaltCause.CRASHED}
    read = msgspec.json.decode(msgspec.json.encode(old), type=Record)
    assert b"c4nary" not in msgspec.json.encode(read)
    assert {read.image("hda"), read.spec.cd_image, read.cd_uri, read.spec.user_data} == {hidden}
    assert after_start(read, read.spec, 2, NOW, {}).phase is Phase.BUILDING
