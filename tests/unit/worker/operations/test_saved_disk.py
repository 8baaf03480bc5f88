"""Saved disks: where each lies, and their download with a ticket over the worker's HTTP. Without a hypervisor."""

import base64
import hashlib
from datetime import UTC, datetime

import httpx2
import msgspec
import pytest
from fastapi import FastAPI

from worker_service.api import disk_download
from worker_service.api.disk_download import DiskDownloads
from worker_service.console.tickets import make
from worker_service.contract import Spec
from worker_service.core.errors import BadRequest, Refused
from worker_service.operations import saved_disk, verbs
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase, Record

UUID = "6d6c7f0e-0000-4000-8000-000000000001"
NOW = datetime(2026, 1, 2, tzinfo=UTC)
BYTES = bytes(range(256)) * 9000
"""More than two chunks."""
SHA256 = hashlib.sha256(BYTES).hexdigest()
ETAG = f'"{SHA256}"'


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "worker.toml").write_text(
        f'data_root = "{tmp_path}/data"\n[images]\nread_roots = ["{tmp_path}/saved"]\n'
        f'write_roots = ["{tmp_path}/saved", "{tmp_path}/dropped"]\nreserve_mib = 0\n'
    )
    return WorkerContext(tmp_path / "worker.toml")


@pytest.fixture
def file(tmp_path):
    """The file that the VM's disk was saved to."""
    path = tmp_path / "saved/web.qcow2"
    path.write_bytes(BYTES)
    return path


def stored(worker, phase, disk, **spec):
    """A record of a VM with one disk, in the worker's store."""
    made = Spec(**{"name": "web01", "hda_image": "file:///a.raw", "hda_save_to": "file:///srv/web.qcow2"} | spec)
    record = Record(
        uuid=UUID, spec=made, generation=1, phase=phase, phase_since=NOW, created_at=NOW, disks={"hda": disk}
    )
    worker.store.create(record)
    return record


def saved(file, **more):
    facts = {"saved_to": f"file://{file}", "saved_sha256": SHA256, "saved_size": len(BYTES), "virtual_size": 1 << 30}
    return Disk(**facts | more)


def content(found, offset=0):
    return b"".join(found.read(offset))


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.SAVE_FAILED, Phase.START_FAILED, Phase.KEPT])
def test_disk_at_its_target_is_read_there(worker, file, phase):
    found = saved_disk.find(worker, stored(worker, phase, saved(file)), "hda")
    assert (found.size, found.sha256, found.resumable) == (len(BYTES), SHA256, True)
    assert (content(found), content(found, 100)) == (BYTES, BYTES[100:])


def test_flattened_disk_of_a_failed_save_is_read_there(worker):
    disk = Disk(flat_file="hda.flat.qcow2", flat_sha256=SHA256, flat_size=len(BYTES))
    record = stored(worker, Phase.SAVE_FAILED, disk)
    path = worker.store.folder(UUID) / "hda.flat.qcow2"
    with pytest.raises(Refused, match="saltern save-retry web01"):
        saved_disk.find(worker, record, "hda")
    path.symlink_to("/etc/hostname")
    with pytest.raises(OSError, match="symbolic links"):
        content(saved_disk.find(worker, record, "hda"))
    path.unlink()
    path.write_bytes(BYTES)
    found = saved_disk.find(worker, record, "hda")
    assert (content(found), content(found, len(BYTES) - 1)) == (BYTES, BYTES[-1:])


WHY = {
    Phase.FETCHING: "Shut it down first",
    Phase.BUILDING: "Shut it down first",
    Phase.BOOTING: "Shut it down first",
    Phase.UP: "Shut it down first: saltern shutdown web01",
    Phase.FLATTENING: "is being saved",
    Phase.SAVING: "is being saved",
    Phase.CLEANING: "is being saved",
    Phase.DONE: "has no saved disk hda",
    Phase.KEPT: "is kept on its worker and not saved. Save it first: saltern modify web01 --hda-save-to URI",
    Phase.START_FAILED: "has no saved disk hda",
    Phase.SAVE_FAILED: "could not be flattened",
    Phase.DESTROYING: "is being destroyed",
}


@pytest.mark.parametrize("phase", list(Phase))
def test_disk_that_is_not_saved_says_why(worker, phase):
    with pytest.raises(Refused, match=WHY[phase]):
        saved_disk.find(worker, stored(worker, phase, Disk(virtual_size=1)), "hda")


def test_disk_without_a_target_is_to_be_saved_first(worker):
    record = stored(worker, Phase.DONE, Disk(virtual_size=1), hda_save_to=None)
    with pytest.raises(Refused, match="Save it first"):
        saved_disk.find(worker, record, "hda")


def test_disk_that_cannot_be_read_says_where_it_lies(worker, file, tmp_path):
    (tmp_path / "dropped").mkdir()
    record = stored(worker, Phase.DONE, saved(tmp_path / "dropped/web.qcow2"))
    with pytest.raises(Refused, match=f"The disk lies at file://{tmp_path}/dropped/web.qcow2"):
        saved_disk.find(worker, record, "hda")
    replaced = msgspec.structs.replace(record, disks={"hda": saved(file, saved_size=7)})
    with pytest.raises(Refused, match="somebody has replaced it"):
        saved_disk.find(worker, replaced, "hda")
    with pytest.raises(BadRequest, match="has no disk 'hdb'"):
        saved_disk.find(worker, record, "hdb")


@pytest.fixture
async def http(worker):
    app = FastAPI()
    app.add_api_route("/vmachines/{uuid}/disks/{disk}", DiskDownloads(worker).serve)
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://worker") as client:
        yield client


def ticket(worker, disk="hda"):
    secret, digest = make()
    reply = verbs.answer(verbs.screen, worker, uuid=UUID, ticket_sha256=digest, user="ann", disk=disk)
    assert reply["success"], reply
    return {"Authorization": f"Ticket {secret}"}


async def test_ticket_opens_one_disk_once(worker, file, http):
    stored(worker, Phase.DONE, saved(file))
    path, opened = f"/vmachines/{UUID}/disks/hda", ticket(worker)
    answer = await http.get(path, headers=opened)
    digest = base64.b64encode(hashlib.sha256(BYTES).digest()).decode()
    assert (answer.status_code, answer.content) == (200, BYTES)
    assert (answer.headers["ETag"], answer.headers["Repr-Digest"]) == (ETAG, f"sha-256=:{digest}:")
    refused = await http.get(path, headers=opened)
    assert (refused.status_code, refused.json()["code"]) == (403, "policy")
    for headers in ({}, {"Authorization": "Bearer x"}, {"Authorization": "Ticket guess"}):
        assert (await http.get(path, headers=headers)).status_code == 403
    assert (await http.get(f"/vmachines/{UUID}/disks/hdb", headers=ticket(worker))).status_code == 403


@pytest.mark.parametrize(
    ("headers", "begins"),
    [
        ({"Range": "bytes=1000000-", "If-Range": ETAG}, 1000000),
        ({"Range": "bytes=1000000-"}, 0),
        ({"Range": "bytes=1000000-", "If-Range": '"other"'}, 0),
        ({"Range": "bytes=1-2", "If-Range": ETAG}, 0),
        ({"Range": f"bytes={len(BYTES)}-", "If-Range": ETAG}, 0),
    ],
)
async def test_download_goes_on_behind_the_same_bytes(worker, file, http, headers, begins):
    stored(worker, Phase.DONE, saved(file))
    answer = await http.get(f"/vmachines/{UUID}/disks/hda", headers=ticket(worker) | headers)
    assert (answer.status_code, answer.content) == (206 if begins else 200, BYTES[begins:])
    expected = f"bytes {begins}-{len(BYTES) - 1}/{len(BYTES)}" if begins else None
    assert answer.headers.get("Content-Range") == expected


async def test_console_ticket_opens_no_disk_and_bounds_hold(worker, file, http, monkeypatch):
    stored(worker, Phase.DONE, saved(file))
    secret, digest = make()
    tickets = disk_download.screen.tickets(worker)
    tickets.issue(digest, vm=UUID, user="ann", admin=True, view_only=False)
    path = f"/vmachines/{UUID}/disks/hda"
    assert (await http.get(path, headers={"Authorization": f"Ticket {secret}"})).status_code == 403
    monkeypatch.setattr(disk_download, "_MOST", 0)
    busy = await http.get(path, headers=ticket(worker))
    assert (busy.status_code, busy.json()["code"]) == (429, "too_many_requests")
    monkeypatch.setattr(disk_download, "_MOST", 1)
    for _ in range(3):  # each one gives its slot back
        assert (await http.get(path, headers=ticket(worker))).status_code == 200


async def test_file_that_is_gone_since_is_a_refusal(worker, file, http):
    stored(worker, Phase.DONE, saved(file))
    opened = ticket(worker)
    file.unlink()
    answer = await http.get(f"/vmachines/{UUID}/disks/hda", headers=opened)
    assert answer.status_code >= 400
    assert "The disk lies at" in answer.json()["message"]
