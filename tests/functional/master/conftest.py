"""A whole master on SQLite or PostgreSQL, with a simulated Salt behind it and its HTTP interface in front.

Tests run on SQLite. Tests of the storage run on both: see `tests.functional.master.databases`.
"""

import asyncio
import functools
import gc
import shutil
import ssl
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from pwdlib.hashers.argon2 import Argon2Hasher

from master_service.__main__ import server as bounded_server
from master_service.api import create_app
from master_service.core import logging
from master_service.core.settings import Settings
from master_service.db.engine import Database
from master_service.policy.accounts import Account, NewToken
from master_service.policy.audit import MASTER
from master_service.policy.permissions import Role, Scope
from master_service.services.master import Master
from tests.functional.master.command import Outcome, called, started
from tests.functional.master.enrolled import enroll
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.lib.postgresql import Cluster

TOKEN = "t0ken-of-the-administrator"
LIMIT_S = 60.0
SPEC: dict[str, Any] = {
    "name": "web01",
    "mem_size": 256,
    "hda_image": "file:/srv/images/web.qcow2",
    "hda_save_to": "file:/srv/saved/web.qcow2",
}


@dataclass
class World:
    """The master under test, the fake Salt, and a client with the administrator's token."""

    master: Master
    salt: FakeSalt
    http: httpx2.AsyncClient
    server: Any = None
    """uvicorn's server, behind a real port."""

    async def person(self, name: str, role: Role = Role.USER, scopes: frozenset[Scope] = frozenset(Scope)) -> str:
        """Make a user, unless it exists, and the token `token-of-<name>`."""
        now, store = self.master.context.clock(), self.master.context.store
        if await store.accounts.account(name) is None:
            await store.accounts.add(Account(name=name, role=role, created_at=now), None, MASTER)
            token = NewToken(
                user=name, kind="token", label="", scopes=scopes, expires_at=None, secret=f"token-of-{name}"
            )
            await store.tokens.add(token, MASTER, now)
        return f"token-of-{name}"

    def of(self, name: str) -> dict[str, str]:
        """Return the header for requests of a user."""
        return {"Authorization": f"Bearer token-of-{name}"}

    async def create(self, **parameters: Any) -> dict[str, Any]:
        response = await self.http.post("/vmachines", json=SPEC | parameters)
        assert response.status_code == 201, response.text
        return response.json()

    async def show(self, vm: str = "web01") -> dict[str, Any]:
        response = await self.http.get(f"/vmachines/{vm}")
        assert response.status_code == 200, response.text
        return response.json()

    async def ask(self, verb: str, vm: str = "web01", json: Any = None, **query: Any) -> dict[str, Any]:
        response = await self.http.post(f"/vmachines/{vm}/{verb}", params=query, json=json)
        assert response.status_code in (200, 202), response.text
        return response.json()

    async def until(self, condition: Callable[[dict[str, Any]], bool], vm: str = "web01") -> dict[str, Any]:
        """Return the VM once the condition holds. The condition is checked after each change."""
        with self.master.context.changes.subscribe() as changes:
            async with asyncio.timeout(LIMIT_S):
                while not condition(observed := await self.show(vm)):
                    await changes.take()
        return observed

    async def status(self, status: str, vm: str = "web01") -> dict[str, Any]:
        return await self.until(lambda observed: observed["status"] == status, vm)

    async def poll(self) -> None:
        """Run one poll now, and wait for what the pusher does afterwards."""
        await self.master.poller.poll()
        await self.quiet()

    async def quiet(self) -> None:
        """Wait until all events are read, and neither the poller nor the pusher has work to do now."""
        await eventually(lambda: self.salt.read and self.master.poller.idle and self.master.pusher.idle)


async def eventually(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    """Wait for a condition that no event announces. The turns of the loop are the clock."""
    async with asyncio.timeout(LIMIT_S):
        while True:
            held = condition()
            if held if isinstance(held, bool) else await held:
                return
            await asyncio.sleep(0.002)


def pytest_configure(config):
    config.addinivalue_line("markers", "databases(*kinds): on which a test runs, in place of SQLite alone")


def pytest_generate_tests(metafunc):
    if "database_url" in metafunc.fixturenames:
        mark = metafunc.definition.get_closest_marker("databases")
        metafunc.parametrize("database_url", mark.args if mark else ["sqlite"], indirect=True)


def migrated(url: str) -> None:
    """Make all tables."""

    async def make() -> None:
        database = Database(url)
        await database.migrate()
        await database.close()

    asyncio.run(make())


@pytest.fixture(scope="session")
def empty_sqlite(tmp_path_factory):
    """A database with all tables and no rows, to be copied: making one takes longer than most tests."""
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrated(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgresql():
    """A PostgreSQL server for the tests."""
    cluster = Cluster()
    yield cluster
    cluster.close()


@pytest.fixture(scope="session")
def empty_postgresql(postgresql):
    """The same as `empty_sqlite`, as the name of a template."""
    name = postgresql.make()
    migrated(postgresql.url(name))
    return name


@pytest.fixture
def database_url(request, tmp_path):
    """A database for the test with all tables, of the kind that `pytest_generate_tests` chose."""
    if request.param == "sqlite":
        shutil.copy(request.getfixturevalue("empty_sqlite"), tmp_path / "master.db")
        yield f"sqlite:///{tmp_path}/master.db"
        return
    template = request.getfixturevalue("empty_postgresql")
    cluster = request.getfixturevalue("postgresql")
    name = cluster.make(template)
    yield cluster.url(name)
    cluster.drop(name)


@pytest.fixture
def settings(tmp_path, database_url):
    (tmp_path / "admin.token").touch(mode=0o600)
    (tmp_path / "admin.token").write_text(TOKEN)
    return Settings(
        database_url=database_url,
        admin_token_file=tmp_path / "admin.token",
        # Timers repeat nothing unless a test says so (`impatient`): a slow machine changes no count.
        retry_base_s=60,
        block_timeout_s=LIMIT_S,
        allowed_hosts=["master"],
    )


@pytest.fixture
def impatient(settings):
    """Settings that repeat everything soon."""
    return settings.model_copy(update={"retry_base_s": 0.02, "retry_cap_s": 0.05, "action_timeout_s": 0.05})


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"))


@functools.cache
def routes() -> list[Any]:
    """The routes of the application. FastAPI takes long to work each out at its first use."""
    return create_app(Settings()).router.routes


def application(settings: Settings, salt: FakeSalt) -> FastAPI:
    """A new application with the routes of all others. Its workers are enrolled."""
    enroll(settings, salt)
    app = create_app(settings, salt)
    app.router.routes = routes()
    return app


@asynccontextmanager
async def running_world(settings: Settings, salt: FakeSalt, *, leads: bool = True) -> AsyncIterator[World]:
    """Start a master. With `leads=False` another master leads, so the start waits for no daemon."""
    app = application(settings, salt)
    async with app.router.lifespan_context(app):
        master = app.state.master
        headers = {"Authorization": f"Bearer {TOKEN}"}
        transport = httpx2.ASGITransport(app, raise_app_exceptions=False)
        async with httpx2.AsyncClient(transport=transport, base_url="http://master/api/v1", headers=headers) as http:
            world = World(master, salt, http)
            if leads and not salt.down:
                await salt.listening.wait()
                await eventually(lambda: bool(master.poller.answered) or not salt.workers)
                await world.quiet()  # all are asked twice: at first, and once the stream is open
            yield world


@pytest.fixture(autouse=True)
def quiet_logs():
    """Log as in production. structlog's default prints each traceback with all local variables, for seconds."""
    logging.configure("info")
    yield
    logging.configure("info")  # to the stderr of now: a test may have had one of its own, which is closed


@pytest.fixture(scope="session", autouse=True)
def frozen():
    """Keep the garbage collector from scanning objects that existed before the first test."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def cheap_passwords(monkeypatch):
    """Hash passwords as in production, at the lowest cost of argon2."""
    hasher = functools.partial(Argon2Hasher, time_cost=1, memory_cost=8, parallelism=1)
    monkeypatch.setattr("master_service.services.password_hashing.Argon2Hasher", hasher)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Shorten the pauses that spare a real Salt: they are not under test."""
    monkeypatch.setattr("master_service.reconciler.poller._GAP_S", 0.01)
    monkeypatch.setattr("master_service.reconciler.event_listener._RECONNECT_S", (0.01, 0.01))


@pytest.fixture
async def world(settings, salt):
    async with running_world(settings, salt) as running:
        yield running


@pytest.fixture
async def served(settings, salt):
    """The same behind a real port."""
    app = application(settings, salt)
    # A connection that is idle is not closed just when it is used again.
    limits = {"timeout_keep_alive": int(LIMIT_S), "timeout_graceful_shutdown": 1}
    server = bounded_server(app, settings.model_copy(update={"port": 0}), lifespan="on", **limits)
    server.install_signal_handlers = lambda: None
    serving = asyncio.create_task(server.serve())
    await eventually(lambda: server.started)
    headers = {"Authorization": f"Bearer {TOKEN}"}
    url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/api/v1"
    no_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to read the machine's takes long
    async with httpx2.AsyncClient(base_url=url, headers=headers, timeout=LIMIT_S, verify=no_certificates) as http:
        world = World(app.state.master, salt, http, server)
        await salt.listening.wait()
        await eventually(lambda: bool(world.master.poller.answered))
        await world.quiet()
        yield world
    server.should_exit = True
    await serving


class Command:
    """Runs `saltern` against a master: `code, out, err = await command("show", "web01")`."""

    def __init__(self, run: Callable[..., Awaitable[Outcome]], url: str, folder: Path):
        self.run, self.url, self.folder = run, url, folder

    async def __call__(
        self, *words: str, token: str = TOKEN, environment: Mapping[str, str] | None = None, typed: str = ""
    ) -> Outcome:
        given = {"SALTERN_URL": self.url, "SALTERN_TOKEN": token, "PATH": "/usr/bin:/bin", "PYTHONPATH": sys.path[0]}
        given = {name: value for name, value in (given | dict(environment or {})).items() if value}
        code, out, err = await self.run(words, given, typed, self.folder)
        assert "Traceback" not in err, err
        return code, out, err


@pytest.fixture
def saltern(served, tmp_path):
    """Call the command in this process."""
    return Command(called, str(served.http.base_url).removesuffix("/api/v1/"), tmp_path)


@pytest.fixture
def process(served, tmp_path):
    """Run the command as a process of its own."""
    return Command(started, str(served.http.base_url).removesuffix("/api/v1/"), tmp_path)
