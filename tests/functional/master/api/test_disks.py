"""`saltern download` through the master, with a worker whose answers a test writes: who may, breaks, wrong bytes."""

import asyncio
import base64
import dataclasses
import hashlib
import re
from contextlib import asynccontextmanager

import msgspec
import pytest

from master_service.policy.permissions import Role
from tests.functional.master.conftest import SPEC, TOKEN
from worker_service.contract.tickets import digest

BYTES = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BYTES)
ETAG = f'"{SHA256.hexdigest()}"'
DIGEST = f"sha-256=:{base64.b64encode(SHA256.digest()).decode()}:"


def answer(body, *, begins=0, sends=None, status="200 OK", **more):
    """The bytes of an answer with this body, of which only `sends` bytes are sent."""
    headers = {"Content-Length": len(body), "ETag": ETAG, "Repr-Digest": DIGEST, "X-Odd": "dropped", **more}
    if begins:
        status, headers["Content-Range"] = "206 Partial Content", f"bytes {begins}-{len(BYTES) - 1}/{len(BYTES)}"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status}\r\n{head}Connection: close\r\n\r\n".encode() + body[:sends]


@dataclasses.dataclass
class WorkerApi:
    """A worker's API that gives the written answers, one for each request; it keeps the requests."""

    answers: list
    requests: list = dataclasses.field(default_factory=list)

    async def serve(self, reader, writer):
        self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(self.answers.pop(0))
        await writer.drain()
        writer.close()

    def header(self, name, request=-1):
        found = re.search(rf"^{name}: (.*)\r$", self.requests[request], re.MULTILINE | re.IGNORECASE)
        return found and found[1]


@asynccontextmanager
async def worker_api(world, *answers):
    api = WorkerApi(list(answers))
    async with await asyncio.start_server(api.serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        world.salt.workers["w1"].worker_api = f"ws://127.0.0.1:{port}"
        yield api


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("master_service.cli.commands.download._PAUSE_S", 0)


@pytest.fixture
async def world(served):
    for name, role in (("uma", Role.USER), ("otto", Role.USER), ("oscar", Role.OPERATOR), ("vera", Role.VIEWER)):
        await served.person(name, role)
    made = await served.http.post("/vmachines", json=SPEC, headers=served.of("uma"))
    assert made.status_code == 201, made.text
    await served.status("running")
    return served


def secret_of(world, name):
    return world.of(name)["Authorization"].removeprefix("Bearer ")


async def entries(world):
    found = (await world.http.get("/audit")).json()
    return [(each["actor"], each["outcome"], each["detail"]) for each in found if each["verb"] == "download"]


async def test_owner_and_administrator_download_a_disk(world, saltern, tmp_path):
    async with worker_api(world, answer(BYTES), answer(BYTES)) as api:
        for token in (secret_of(world, "uma"), TOKEN):
            code, out, err = await saltern("download", "web01", "-o", "x.qcow2", "--force", token=token)
            assert (code, out) == (0, f"hda of web01 is in x.qcow2 (1.0 MiB, sha256 {SHA256.hexdigest()}).\n"), err
            assert (tmp_path / "x.qcow2").read_bytes() == BYTES
            assert (tmp_path / "x.qcow2").stat().st_mode & 0o777 == 0o600
        # The worker got the digest of the secret that the master then presented, for this user and this disk.
        given = world.salt.workers["w1"].tickets[-1]
        secret = api.header("authorization").removeprefix("Ticket ")
        assert (given["ticket_sha256"], given["user"], given["disk"]) == (digest(secret), "admin", "hda")
        assert api.requests[-1].startswith(f"GET /vmachines/{given['uuid']}/disks/hda HTTP/1.1")
    assert [path.name for path in tmp_path.glob("*.part")] == []
    assert await entries(world) == [("admin", "done", "hda"), ("uma", "done", "hda")]


@pytest.mark.parametrize(("name", "code"), [("otto", 3), ("oscar", 5), ("vera", 5)])
async def test_others_download_nothing(world, saltern, tmp_path, name, code):
    async with worker_api(world) as api:
        found, _, err = await saltern("download", "web01", "-o", "x.qcow2", token=secret_of(world, name))
        assert (found, api.requests, list(tmp_path.glob("*x.qcow2*"))) == (code, [], []), err


async def test_download_goes_on_after_a_break(world, saltern, tmp_path):
    sent = 300000
    async with worker_api(world, answer(BYTES, sends=sent), answer(BYTES[sent:], begins=sent)) as api:
        code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
        assert (code, "Going on after 0.3 MiB" in err) == (0, True), err
        assert (api.header("range"), api.header("if-range")) == (f"bytes={sent}-", ETAG)
    assert (tmp_path / "x.qcow2").read_bytes() == BYTES


async def test_download_begins_again_where_it_cannot_go_on(world, saltern, tmp_path):
    async with worker_api(world, answer(BYTES, sends=300000), answer(BYTES)):
        assert (await saltern("download", "web01", "-o", "x.qcow2"))[0] == 0
    assert (tmp_path / "x.qcow2").read_bytes() == BYTES


REFUSAL = b'{"success": false, "message": "It is being saved.", "code": "conflict"}'


@pytest.mark.parametrize(
    ("answers", "code", "text"),
    [
        ([answer(BYTES[:-1] + b"x")], 1, "does not have the digest"),
        ([answer(BYTES, **{"Repr-Digest": "odd"})], 1, "does not have the digest"),
        ([answer(REFUSAL, status="409 Conflict")], 1, "It is being saved."),
        ([answer(b"odd", status="302 Found", Location="http://elsewhere/")], 1, "Its worker answered 302."),
        ([answer(BYTES, sends=300000)] + [answer(BYTES, sends=0)] * 9, 1, "broke"),
    ],
)
async def test_failed_download_leaves_nothing(world, saltern, tmp_path, answers, code, text):
    before = sorted(tmp_path.iterdir())
    async with worker_api(world, *answers):
        found, _, err = await saltern("download", "web01", "-o", "x.qcow2")
        assert (found, text in err) == (code, True), err
    assert sorted(tmp_path.iterdir()) == before


async def test_existing_file_stays_unless_it_is_forced(world, saltern, tmp_path):
    (tmp_path / "x.qcow2").write_text("mine")
    async with worker_api(world, answer(BYTES)) as api:
        code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
        assert (code, "--force" in err, api.requests) == (1, True, [])
        assert (tmp_path / "x.qcow2").read_text() == "mine"
        code, _, err = await saltern("download", "web01", "-o", ".")
        assert (code, "is a folder" in err) == (1, True)
        code, _, err = await saltern("download", "web01", "-o", "missing/x.qcow2")
        assert (code, "Cannot write" in err, api.requests) == (1, True, [])
        assert (await saltern("download", "web01", "-o", "x.qcow2", "--force"))[0] == 0
    assert (tmp_path / "x.qcow2").read_bytes() == BYTES


async def test_refusals_say_why_and_are_audited(world, saltern):
    code, _, err = await saltern("download", "web01", "--disk", "hdb", "-o", "x.qcow2")
    assert (code, "has no disk 'hdb'. Nothing was downloaded." in err) == (1, True), err
    assert (await saltern("download", "web01", "--disk", "hdc", "-o", "x.qcow2"))[0] == 2
    async with worker_api(world):
        pass  # and nothing listens there any more
    code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
    assert (code, "The worker does not send the disk" in err) == (1, True), err
    world.salt.workers["w1"].capacity = msgspec.structs.replace(world.salt.workers["w1"].capacity, features=())
    await world.poll()
    code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
    assert (code, "w1 is too old to send disks. Upgrade it" in err) == (1, True), err
    await world.create(name="web02", run_policy="manual")
    code, _, err = await saltern("download", "web02", "-o", "x.qcow2")
    assert (code, "has no worker yet" in err) == (1, True), err
    assert [outcome for _, outcome, _ in await entries(world)] == ["refused"] * 4


async def test_download_ends_with_the_right_to_it(world, saltern, tmp_path, monkeypatch):
    monkeypatch.setattr("master_service.api.routes.disks._LOOK_S", 0)

    async def no(*_):
        return False

    monkeypatch.setattr("master_service.api.routes.disks._may_read", no)
    async with worker_api(world, *[answer(BYTES)] * 9):
        code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
        assert (code, "broke" in err) == (1, True), err
    assert not (tmp_path / "x.qcow2").exists()


async def test_one_user_has_few_downloads_at_once(world, saltern):
    with world.master.downloads.taken("admin"), world.master.downloads.taken("admin"):
        code, _, err = await saltern("download", "web01", "-o", "x.qcow2")
        assert (code, "admin has 2 downloads" in err) == (1, True), err
    async with worker_api(world, *[answer(REFUSAL, status="409 Conflict"), answer(BYTES)]):
        assert (await saltern("download", "web01", "-o", "x.qcow2"))[0] == 1
        assert (await saltern("download", "web01", "-o", "x.qcow2"))[0] == 0
    assert not world.master.downloads._taken
