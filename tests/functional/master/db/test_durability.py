"""Faults of the database that must not harm VMs: a full disk, a lost or older database, a kill during a commit."""

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

from master_service.core import logging
from tests.functional.master.conftest import SPEC, TOKEN, eventually, running_world
from tests.functional.master.databases import on_both, on_sqlite
from tests.functional.master.reconciler.test_workers import ADMIN
from tests.functional.master.services.test_vms import verbs

pytestmark = on_both
REPO = Path(__file__).parents[4]
KILLS = 50
KILLER = """
import asyncio, os, signal, sqlite3, sys, time
from master_service.db.engine import Database
from master_service.db.tables import WorkerRow

async def write(url, number, told):
    database = Database(url)
    while True:
        async with database.write() as session:
            session.add(WorkerRow(id=f"w{number}", version="x" * 500))
        os.write(told, f"{number}\\n".encode())
        number += 1

async def prepare(url):
    database = Database(url)
    async with database.read() as session:
        await session.get(WorkerRow, "nobody")
    await database.close()

file, kills = sys.argv[1], int(sys.argv[2])
asyncio.run(prepare(f"sqlite:///{file}"))  # what is loaded and compiled for that is not once more by each child
there = set()
for turn in range(kills):
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        asyncio.run(write(f"sqlite:///{file}", len(there), writer))
    os.close(writer)
    told = os.read(reader, 1 << 16)  # at least one commit
    time.sleep(0.003 + 0.0007 * (turn % 13))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    while more := os.read(reader, 1 << 16):
        told += more
    os.close(reader)
    connection = sqlite3.connect(file)
    assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    there = {row for (row,) in connection.execute("SELECT id FROM worker")}
    connection.close()
    missing = {f"w{number}" for number in told.decode().split()} - there
    assert not missing, missing
print(len(there))
"""


@pytest.fixture
def small_disk():
    # Not in pytest's tmp_path: PostgreSQL, another user, has to get there.
    folder = Path(tempfile.mkdtemp(prefix="saltern-small-", dir="/var/tmp"))
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", folder], check=False, capture_output=True)
    if done.returncode:
        folder.rmdir()
        pytest.skip("a tmpfs of one's own needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)
    folder.rmdir()


@pytest.fixture
def cramped(settings, small_disk, request):
    """Settings with a database on the small disk: SQLite's file, or a tablespace of PostgreSQL, whose log is elsewhere.

    A full disk under PostgreSQL's own log stops the server: to the master that is a database that is away.
    """
    if "sqlite" in settings.database_url:
        shutil.copy(request.getfixturevalue("empty_sqlite"), small_disk / "master.db")
        yield settings.model_copy(update={"database_url": f"sqlite:///{small_disk}/master.db"})
        return
    cluster, template = (request.getfixturevalue(name) for name in ("postgresql", "empty_postgresql"))
    (small_disk / "space").mkdir()
    space = cluster.make_tablespace(small_disk / "space")
    name = cluster.make(template, space)
    yield settings.model_copy(update={"database_url": cluster.url(name)})
    cluster.drop(name)
    cluster.run(f"DROP TABLESPACE {space}")


class Copies:
    """Keeps a copy of an unused database, and puts it back in its place."""

    def __init__(self, url, cluster):
        self.cluster = cluster
        if cluster is None:
            self.file = Path(url.removeprefix("sqlite:///"))
        else:
            self.name = url.partition("@/")[2].partition("?")[0]

    def keep(self):
        if self.cluster is None:
            shutil.copy(self.file, self.file.with_suffix(".backup"))
        else:
            self.copy = self.cluster.make(self.name)

    def restore(self):
        if self.cluster is None:
            for each in self.file.parent.glob("master.db-*"):
                each.unlink()
            shutil.copy(self.file.with_suffix(".backup"), self.file)
        else:
            self.cluster.drop(self.name)
            self.cluster.make(self.copy, name=self.name)
            self.cluster.drop(self.copy)


@pytest.fixture
def copies(settings, request):
    is_file = "sqlite" in settings.database_url
    return Copies(settings.database_url, None if is_file else request.getfixturevalue("postgresql"))


async def test_full_disk_is_reported_and_outlasted(cramped, salt, small_disk, capfd):
    logging.configure("debug")  # to the stderr of now
    async with running_world(cramped, salt) as world:
        await world.person("uma")
        await world.http.patch("/users/uma/contact", json={"webhook_url": "https://hooks.test/c4nary-of-the-path"})
        await world.create()
        await world.status("running")
        ballast = small_disk / "ballast"
        with ballast.open("wb", buffering=0) as out, suppress(OSError):
            while out.write(b"x" * 4096):
                pass
        refused = None
        for number in range(600):
            # Not to be started: they would take the room of the one that is created in the end.
            body = {"name": f"n{number}", "hda_image": "file:/srv/images/a", "run_policy": "manual"}
            answer = await world.http.post("/vmachines", json=body)
            if answer.status_code != 201:
                refused = answer
                break
        assert refused is not None
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (507, "database_full")
        assert "full" in problem["detail"]
        assert "Free space" in problem["hint"]
        # No log has a statement's parameters: here the secrets of a contact that could not be stored.
        for number in range(20):
            given = {"webhook_url": f"https://hooks.test/{number}/c4nary-of-the-path/{'x' * 1500}"}
            await world.http.patch("/users/uma/contact", json=given)
        assert (await world.show())["status"] == "running"  # reading goes on
        ballast.unlink()
        await world.create(name="after", mem_size=64)
        await world.poll()
        await world.status("running", "after")
    out, err = capfd.readouterr()
    assert "database_failed" in err
    assert "c4nary" not in out + err


async def test_missing_database_is_reported_and_outlasted(settings, salt, monkeypatch, request):
    if "sqlite" in settings.database_url:
        locked = sqlite3.connect(settings.database_url.removeprefix("sqlite:///"), isolation_level=None)
        away, there = (lambda: locked.execute("BEGIN IMMEDIATE")), (lambda: locked.execute("ROLLBACK"))
    else:
        cluster = request.getfixturevalue("postgresql")
        away, there = cluster.stop, cluster.start
    async with running_world(settings, salt) as world:
        engine = world.master.context.store.database.engine
        with monkeypatch.context() as hasty:  # while it is away, not when two of ours want to write
            hasty.setattr("master_service.db.engine._BUSY_TIMEOUT_MS", 50)
            await engine.dispose()
            away()
            try:
                answer = await world.http.post("/vmachines", json=SPEC)
            finally:
                there()
        await engine.dispose()
        assert (answer.status_code, answer.json()["code"]) == (503, "database_unavailable")
        assert "database_url" in answer.json()["hint"]
        await world.create()
        await world.status("running")


async def test_database_of_yesterday_destroys_nothing(settings, salt, copies):
    async with running_world(settings, salt) as world:
        old = await world.create(name="old", mem_size=64)
        await world.status("running", "old")
    copies.keep()
    async with running_world(settings, salt) as world:
        new = await world.create(name="new", mem_size=64)
        await world.status("running", "new")
        await world.ask("suspend", "old")
    copies.restore()
    before = len(salt.jobs)
    async with running_world(settings, salt) as world:
        for _ in range(4):
            await world.poll()
        assert "destroy" not in dict(verbs(salt)[before:])
        assert {old["uuid"], new["uuid"]} <= set(salt.workers["w1"].vms)
        (worker,) = (await world.http.get("/workers")).json()
        assert [unassigned["uuid"] for unassigned in worker["unassigned_vms"]] == [new["uuid"]]
        await world.ask("start", "old")
        await world.until(lambda vm: vm["status"] == "running", "old")


async def test_empty_database_destroys_nothing(settings, salt, database_url):
    salt.workers["w1"].apply(
        [
            {
                "verb": "start",
                "uuid": f"{n}" * 36,
                "generation": 7,
                "params": {"name": f"vm{n}", "hda_image": "file:/a"},
            }
            for n in range(3)
        ]
    )
    async with running_world(settings, salt) as world:
        for _ in range(4):
            await world.poll()
        (worker,) = (await world.http.get("/workers")).json()
        assert len(worker["unassigned_vms"]) == 3
        assert salt.jobs == []
        assert TOKEN not in str(worker)


def test_sqlite_survives_kills_during_commits(tmp_path, empty_sqlite):
    """Committed data is there, and the file is whole, however often its writer is killed."""
    shutil.copy(empty_sqlite, tmp_path / "master.db")
    argv = [sys.executable, "-c", KILLER, str(tmp_path / "master.db"), str(KILLS)]
    done = subprocess.run(argv, cwd=REPO, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= KILLS


@on_sqlite
async def test_thousand_changes_make_at_most_two_jobs(world):
    await world.create()
    await world.status("running")
    before = len(world.salt.jobs)
    service = world.master.vms
    gate = world.salt.gates["w1"] = asyncio.Event()
    uuid = (await world.show())["uuid"]
    for number in range(100):
        world.master.pusher.wake([uuid] * 9)
        await service.modify("web01", {"hda_save_to": f"file:/srv/saved/{number}.qcow2"}, ADMIN)
    gate.set()
    worker = world.salt.workers["w1"]
    await eventually(lambda: worker.vms[uuid].spec.hda_save_to == "file:/srv/saved/99.qcow2")
    await world.quiet()
    assert len(world.salt.jobs) - before <= 2
