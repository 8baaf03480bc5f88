"""The owner of a VM: from the command into the record, the status and every decision about folders and networks."""

from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest

from tests.lib.support import sha256
from worker_service.contract import (
    KEEP_FEATURE,
    ORIGIN_FEATURE,
    OWNER_FEATURE,
    PLAN_FEATURE,
    Capabilities,
    Code,
    HaltCause,
    PlanReply,
)
from worker_service.contract.tickets import DOWNLOAD_FEATURE
from worker_service.core.settings import Settings
from worker_service.hypervisor.base import ABSENT
from worker_service.operations import admission, queries, start, verbs
from worker_service.operations.status_report import capacity, vm_status
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record

BOOTABLE = (bytes(510) + b"\x55\xaa").ljust(3 << 20, b"\0")
"""A raw disk with a boot sector."""
UUID = "6d6c7f0e-0000-4000-8000-000000000001"


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """A worker without a hypervisor and without helpers, whose folders are divided by owners."""
    (tmp_path / "worker.toml").write_text(
        f'data_root = "{tmp_path}/data"\nnetworks = ["lan", "of-{{owner}}"]\nbridges = ["br-?"]\n[images]\n'
        f'read_roots = ["{tmp_path}/saved/{{owner}}"]\nwrite_roots = ["{tmp_path}/saved/{{owner}}"]\nreserve_mib = 0\n'
    )
    for owner in ("ann", "bob"):
        (tmp_path / "saved" / owner).mkdir(parents=True)
    made = WorkerContext(tmp_path / "worker.toml")
    driver = SimpleNamespace(
        cpus=lambda: 8,
        memory_mib=lambda: 8192,
        state=lambda _: ABSENT,
        states=dict,
        capabilities=Capabilities,
        isolation=lambda: (True, "a test"),
    )
    monkeypatch.setattr(made, "hypervisors", {"kvm": driver})
    for module in (start, verbs):
        monkeypatch.setattr(module, "start_helper_and_notify", lambda *_: None)
    monkeypatch.setattr(start.launcher, "start_helper_if_due", lambda *_: None)
    return made


def command(verb, params, owner="", generation=1):
    return {"verb": verb, "uuid": UUID, "generation": generation, "params": params} | (
        {"owner": owner} if owner else {}
    )


def apply(worker, *actions):
    return verbs.answer(verbs.apply, worker, actions=list(actions))["results"]


def saved(worker, owner, name="a.qcow2"):
    return f"file://{worker.settings.data_root.parent}/saved/{owner}/{name}"


def params(worker, owner, **more):
    return {"name": "web01", "hda_image": "blank:1M", "hda_save_to": saved(worker, owner), **more}


def test_owner_reaches_record_and_status(worker):
    (result,) = apply(worker, command("start", params(worker, "ann"), "ann"))
    assert result["success"], result
    record = worker.store.read(UUID)
    assert record.owner == vm_status(worker, record, ABSENT).owner == "ann"


@pytest.mark.parametrize("field", ["hda_image", "cd_image", "user_data", "hda_save_to"])
@pytest.mark.parametrize("owner", ["bob", ""])
def test_start_with_the_disk_of_another_is_refused(worker, field, owner):
    given = params(worker, "bob", hda_save_to="") | {field: saved(worker, "ann")}
    (result,) = apply(worker, command("start", given, owner))
    assert (result["success"], result["code"]) == (False, "policy"), result
    assert "saved/ann" not in result["message"].partition("lies outside")[2]


def test_modify_is_checked_for_the_owner_of_the_vm(worker):
    apply(worker, command("start", params(worker, "ann"), "ann"))
    for more in ({"owner": "ann"}, {}):  # the second one from an older master, or from the worker's own interface
        (result,) = apply(worker, command("modify", {"hda_save_to": saved(worker, "bob")}, generation=2) | more)
        assert result["code"] == "policy"
        (result,) = apply(worker, command("modify", {"hda_save_to": saved(worker, "ann", "b")}, generation=2) | more)
        assert result["success"], result
    assert verbs.answer(verbs.modify, worker, uuid=UUID, hda_save_to=saved(worker, "bob"))["code"] == "policy"
    assert worker.store.read(UUID).owner == "ann"


def test_record_without_owner_gets_that_of_the_next_command(worker):
    """A VM of an older master, or of an older worker."""
    apply(worker, command("start", params(worker, "ann", hda_save_to="")))
    assert worker.store.read(UUID).owner == ""
    apply(worker, command("modify", {}, "ann", generation=2))
    assert worker.store.read(UUID).owner == "ann"
    apply(worker, command("start", params(worker, "ann", hda_save_to=""), generation=3))
    assert (worker.store.read(UUID).owner, worker.store.read(UUID).generation) == ("ann", 3)


def test_vm_of_the_workers_own_interface_is_the_sites(worker):
    given = params(worker, "ann", name="local")
    assert verbs.answer(verbs.start, worker, **given)["code"] == "policy"
    assert verbs.answer(verbs.start, worker, **(given | {"hda_save_to": ""}))["success"]
    assert worker.store.find(name="local").owner == ""
    refused = verbs.answer(verbs.start, worker, **given, owner="ann")
    assert (refused["code"], "owner" in refused["message"]) == ("bad_request", True)


def test_start_of_an_owned_vm_by_hand_is_its_owners(worker):
    apply(worker, command("start", params(worker, "ann"), "ann"))
    worker.store.update(UUID, lambda record: msgspec.structs.replace(record, phase=Phase.START_FAILED))
    assert verbs.answer(verbs.start, worker, **params(worker, "ann"))["success"]
    assert worker.store.read(UUID).owner == "ann"
    assert verbs.answer(queries.plan, worker, **params(worker, "ann"))["fits"]


def plan(worker, parameters, owner="", uuid=UUID, **more):
    return verbs.answer(queries.plan, worker, **parameters, uuid=uuid, owner=owner, **more)


def test_plan_of_a_master_is_made_for_the_owner(worker):
    """As its start would be: the site, and another owner, may not read or write there."""
    given = params(worker, "ann")
    found = plan(worker, given, "ann")
    assert (found["success"], found["fits"], found["exists"]) == (True, True, None), found
    for owner in ("", "bob"):
        assert plan(worker, given, owner)["code"] == "policy"
    image = saved(worker, "ann", "c.raw")
    Path(image.removeprefix("file://")).write_bytes(BOOTABLE)
    found = plan(worker, given | {"hda_image": image}, "ann")
    assert (found["bytes_to_fetch"], found["images"][0]["cached"]) == (3 << 20, False)
    assert msgspec.convert(found, PlanReply).images[0].uri == image
    assert plan(worker, given | {"hda_image": image}, "bob")["code"] == "policy"
    assert plan(worker, {"name": "a", "hda_image": "file:///etc/shadow"}, "ann")["code"] == "policy"
    for owner in ("../bob", "*"):
        assert plan(worker, given, owner)["code"] == "bad_request"
    assert list(worker.store.all()) == []


def test_plan_for_a_kept_vm_fetches_nothing(worker):
    """Its image may be gone: the VM starts from its own disks."""
    apply(worker, command("start", params(worker, "ann"), "ann"))
    gone = msgspec.structs.replace(worker.store.read(UUID).spec, hda_image=saved(worker, "ann", "gone.qcow2"))
    worker.store.update(UUID, lambda record: msgspec.structs.replace(record, phase=Phase.KEPT, spec=gone))
    found = plan(worker, msgspec.to_builtins(gone))
    assert (found["fits"], found["bytes_to_fetch"], found["images"], found["exists"]) == (True, 0, [], UUID), found


def test_disks_are_said_to_be_kept_or_discarded(worker):
    """Before a VM starts, and when it is changed."""
    given = params(worker, "ann", hda_save_to="")
    ends = "Its disk will be discarded when it halts."
    assert plan(worker, given, "ann")["message"].endswith(f"and start. {ends}")
    (started,) = apply(worker, command("start", given, "ann"))
    assert started["message"] == f"Accepted; it is being started. {ends}"
    kept = verbs.answer(verbs.modify, worker, uuid=UUID, hda_save_to="keep")
    assert kept["message"] == "Changed. Its disk will be kept on its worker when it halts."
    assert worker.store.read(UUID).spec.hda_save_to is None
    stopped = verbs.answer(verbs.shutdown, worker, uuid=UUID)
    assert stopped["message"] == "It was asked to shut down. It has not run yet: nothing is saved."


def test_origin_is_booted_and_planned_instead_of_the_image(worker):
    path = worker.settings.data_root.parent / "saved/ann/last.raw"
    path.write_bytes(BOOTABLE)
    save = f"file://{path}#sha256={sha256(path)}"
    found = plan(worker, params(worker, "ann"), "ann", origin={"hda": save})
    assert (found["bytes_to_fetch"], [image["uri"] for image in found["images"]]) == (3 << 20, [f"file://{path}"])
    assert plan(worker, params(worker, "bob"), "bob", origin={"hda": save})["code"] == "policy"
    (refused,) = apply(worker, command("start", params(worker, "bob"), "bob") | {"origin": {"hda": save}})
    assert (refused["code"], list(worker.store.all())) == ("policy", [])
    (started,) = apply(worker, command("start", params(worker, "ann"), "ann") | {"origin": {"hda": save}})
    assert started["success"], started
    record = worker.store.read(UUID)
    assert (record.image("hda"), record.spec.hda_image) == (save, "blank:1M")
    assert vm_status(worker, record, ABSENT).origin == {"hda": save}
    (again,) = apply(worker, command("start", params(worker, "ann"), "ann", generation=2))
    assert again["success"], again
    assert worker.store.read(UUID).origin == {"hda": save}


def kept(worker, cause, **more):
    """Let a VM be off with its disks kept, as if it had run."""
    apply(worker, command("start", params(worker, "ann", **more), "ann"))
    changes = {"phase": Phase.KEPT, "halt_cause": cause, "disks": {"hda": Disk()}, "message": "It is off."}
    record = worker.store.update(UUID, lambda record: msgspec.structs.replace(record, **changes))
    (worker.store.folder(UUID) / "hda.qcow2").write_bytes(b"x" * 10_000)
    return record


def test_kept_disks_count_as_space(worker):
    record = kept(worker, HaltCause.GUEST, hda_save_to="keep")
    found = capacity(worker, (record,))
    assert (found.kept_vms, found.taken) == (1, {})
    assert 10_000 <= found.kept_bytes < 1 << 20
    disk = vm_status(worker, record, ABSENT).disks["hda"]
    assert (disk.save_to, disk.kept, disk.fate) == (None, str(worker.store.folder(UUID) / "hda.qcow2"), "kept here")
    worker.store.folders.remove(UUID)
    assert capacity(worker, (record,)).kept_bytes == 0  # it was destroyed just now


@pytest.mark.parametrize(
    ("cause", "save_to", "phase", "words"),
    [
        (HaltCause.GUEST, "keep", Phase.KEPT, "It is off."),  # there is nothing to do
        (HaltCause.CRASHED, "keep", Phase.KEPT, "start boots it again, destroy discards them."),
        (HaltCause.CRASHED, "", Phase.CLEANING, "It is off. hda: discarded."),
        (HaltCause.CRASHED, None, Phase.FLATTENING, "It is off. hda: being saved."),
    ],
)
def test_shutdown_of_kept_disks_says_what_becomes_of_them(worker, cause, save_to, phase, words):
    kept(worker, cause, **({} if save_to is None else {"hda_save_to": save_to}))
    found = verbs.answer(verbs.shutdown, worker, uuid=UUID)
    assert found["success"], found
    assert words in found["message"]
    assert worker.store.read(UUID).phase is phase


def test_start_says_from_what_it_starts_again(worker):
    kept(worker, HaltCause.GUEST, hda_save_to="keep")
    (again,) = apply(worker, command("start", params(worker, "ann", hda_save_to="keep"), "ann", generation=2))
    assert again["message"].startswith("Accepted; it is started again from its kept disks. Its disk will be kept")


def test_plan_says_that_the_name_is_taken(worker):
    apply(worker, command("start", params(worker, "ann"), "ann"))
    other = "99999999-2222-4333-8444-555555555555"
    found = plan(worker, params(worker, "ann"), "ann", uuid=other)
    assert (found["fits"], found["exists"]) == (False, None)
    assert f"is taken here by VM {UUID}" in found["message"]
    assert plan(worker, params(worker, "ann"), "ann", uuid=None)["exists"] == UUID


@pytest.mark.parametrize("owner", ["../bob", "a/b", "..", ".", "Ann", "a\n", "*", "x" * 64, "a b", 7, None])
def test_owner_that_is_no_safe_folder_is_refused(worker, owner):
    (result,) = apply(worker, {**command("start", params(worker, "ann")), "owner": owner})
    assert result["code"] == "bad_request"


def test_worker_says_that_it_reads_owners(worker):
    known = {DOWNLOAD_FEATURE, KEEP_FEATURE, ORIGIN_FEATURE, OWNER_FEATURE, PLAN_FEATURE}
    assert known <= set(capacity(worker, ()).features)


def test_record_of_an_older_version_is_the_sites(worker):
    raw = {
        "uuid": UUID, "spec": {"name": "a", "hda_image": "blank:1M"}, "generation": 1, "phase": "up",
        "phase_since": "2026-01-01T00:00:00Z", "created_at": "2026-01-01T00:00:00Z",
    }  # fmt: skip
    assert msgspec.convert(raw, Record).owner == ""


@pytest.mark.parametrize(
    ("network", "owner", "joins"),
    [
        ("user", "", True),
        ("none", "", True),
        ("network=lan", "", True),
        ("network=lan2", "", False),
        ("network=default", "", False),
        ("network=of-ann", "ann", True),
        ("network=of-ann", "bob", False),
        ("network=of-{owner}", "", False),
        ("network=of-", "", False),
        ("bridge=br-1", "ann", True),
        ("bridge=br-10", "ann", False),
        ("bridge=lan", "", False),
        ("bridge=eth0", "", False),
    ],
)
def test_networks_of_the_settings_are_joined(worker, network, owner, joins):
    given = params(worker, "ann", hda_save_to="", network=network)
    (result,) = apply(worker, command("start", given, owner))
    assert result["success"] is joins
    if not joins:
        assert result["code"] == Code.POLICY
        assert network.partition("=")[0] + "s in the worker's settings" in result["message"]


def test_no_network_of_the_host_is_joined_by_default():
    assert admission.allowed_networks(Settings(), "ann") == ["user", "none"]


def test_capabilities_and_plan_show_the_networks(worker):
    assert queries.capabilities(worker)["networks"] == [
        "user", "none", "network=lan", "network=of-{owner}", "bridge=br-?"
    ]  # fmt: skip
    plan = verbs.answer(queries.plan, worker, **params(worker, "ann", hda_save_to="", network="bridge=virbr0"))
    assert (plan["success"], plan["fits"]) == (True, False)
    assert "'bridge=virbr0' is not one that VMs may join here (user, none, network=lan, bridge=br-?)" in plan["message"]
