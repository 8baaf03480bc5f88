"""Consoles through the master, with a simulated worker: who may open one, and when it ends."""

import asyncio
import dataclasses
import json
import ssl
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta

import pytest
from sqlalchemy import update
from sqlmodel import col
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, InvalidStatus

from master_service.db.tables import VMachineRow
from master_service.policy.permissions import Role, Scope
from master_service.store import mapping
from tests.functional.master.conftest import LIMIT_S, SPEC, eventually
from tests.lib.support import self_signed
from worker_service.contract.console_protocol import ticket_in
from worker_service.contract.tickets import digest

GREETING = b"RFB 003.008\n"


OFFERED: list[list[str]] = []
"""The subprotocols with which the master came to the worker, for each connection."""


async def _echo(websocket):
    OFFERED.append(websocket.request.headers.get_all("Sec-WebSocket-Protocol"))
    await websocket.send(GREETING)
    async for message in websocket:
        await websocket.send(message)


@pytest.fixture(autouse=True)
def often(monkeypatch):
    """Check the right to a view more often than a user would notice, and wait for slow peers."""
    monkeypatch.setattr("master_service.api.routes.console._LOOK_S", 0.05)
    monkeypatch.setattr("master_service.api.routes.console._OPEN_S", LIMIT_S)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    return self_signed(tmp_path_factory.mktemp("tls"))


@pytest.fixture
def settings(settings, certificate):
    return settings.model_copy(update={"console_ca_file": certificate[0], "max_consoles": 3})


@asynccontextmanager
async def worker_api(world, tls=None):
    """The worker's end, plain or over TLS: it shows what it is sent."""
    context = None
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(*tls)
    async with serve(_echo, "127.0.0.1", 0, subprotocols=["binary"], ssl=context, open_timeout=LIMIT_S) as server:
        port = server.sockets[0].getsockname()[1]
        world.salt.workers["w1"].worker_api = f"{'wss' if tls else 'ws'}://127.0.0.1:{port}"
        yield


@pytest.fixture
async def world(served):
    """A master whose worker shows the tickets that it gets. Uma, Oscar, Ada and Otto have one role each."""
    async with worker_api(served):
        for name, role in (("ada", Role.ADMIN), ("oscar", Role.OPERATOR), ("uma", Role.USER), ("otto", Role.USER)):
            await served.person(name, role)
        yield served


async def create(world, owner="uma", name="web01"):
    answer = await world.http.post("/vmachines", json={**SPEC, "name": name}, headers=world.of(owner))
    assert answer.status_code == 201, answer.text
    return (await world.status("running", name))["uuid"]


async def ticket(world, actor="uma", vm="web01", **order):
    answer = await world.http.post(f"/vmachines/{vm}/console", json=order, headers=world.of(actor))
    assert answer.status_code == 200, answer.text
    return answer.json()


def opening(made, **options):
    subprotocols = ["binary", f"ticket.{made['ticket']}"]
    return connect(made["url"], subprotocols=subprotocols, proxy=None, open_timeout=LIMIT_S, **options)


@asynccontextmanager
async def view(made):
    async with opening(made) as screen:
        assert await screen.recv() == GREETING
        yield screen


async def refused(made, status=403, **options):
    with pytest.raises(InvalidStatus) as caught:
        async with opening(made, **options):
            pass
    assert caught.value.response.status_code == status
    return json.loads(caught.value.response.body)["detail"]


async def closed(screen):
    """The code and the reason of a close, which comes by itself."""
    async with asyncio.timeout(LIMIT_S):
        with pytest.raises(ConnectionClosed) as caught:
            await screen.recv()
    return caught.value.rcvd.code, caught.value.rcvd.reason


async def _disable(world):
    await world.http.patch("/users/uma", json={"disabled": True})


async def _promote(world):
    await world.http.patch("/users/uma", json={"role": "operator"})


async def _revoke(world):
    assert (await world.http.delete("/tokens/current", headers=world.of("uma"))).status_code == 204


async def _give_away(world):
    otto = await world.master.accounts.user("otto")
    async with world.master.context.store.database.write() as session:
        given = update(VMachineRow).where(col(VMachineRow.name) == "web01")
        await session.exec(given.values(owner=otto.name, owner_id=otto.id))


ENDS = [_disable, _promote, _revoke, _give_away]


@pytest.mark.parametrize("end", ENDS)
async def test_view_ends_with_the_right_to_it(world, end):
    await create(world)
    made = await ticket(world)
    async with view(made) as screen:
        await screen.send(b"key")
        assert await screen.recv() == b"key"
        await end(world)
        code, reason = await closed(screen)
    assert (code, "may not see this console any more" in reason) == (1008, True)
    await eventually(lambda: world.master.console_tickets.open == 0)


@pytest.mark.parametrize("end", ENDS)
async def test_ticket_ends_with_the_right_to_it(world, end):
    await create(world)
    made = await ticket(world)
    await end(world)
    assert "No valid ticket" in await refused(made)


async def test_administrators_view_ends_with_the_role(world):
    await create(world)
    async with view(await ticket(world, "ada")) as screen:
        await world.http.patch("/users/ada", json={"role": "viewer"})
        assert (await closed(screen))[0] == 1008


async def test_view_lasts_as_long_as_the_right_to_it(world, monkeypatch):
    await create(world)
    looks, may = [], world.master.console_tickets.may_see
    monkeypatch.setattr(
        world.master.console_tickets, "may_see", lambda ticket: looks.append(ticket.requester.name) or may(ticket)
    )
    async with view(await ticket(world)) as own, view(await ticket(world, "oscar")) as operators:
        await eventually(lambda: min(looks.count("uma"), looks.count("oscar")) >= 5)
        for screen in (own, operators):
            await screen.send(b"still here")
            assert await screen.recv() == b"still here"


async def test_operator_counts_as_administrator_of_consoles(world):
    """As at the worker: a token for consoles alone opens no console while software is being installed."""
    await create(world)
    few = frozenset({Scope.READ, Scope.CONSOLE})
    for name, role in (("adam", Role.ADMIN), ("olga", Role.OPERATOR)):
        await world.person(name, role, few)
    for who in ("ada", "oscar", "uma", "adam", "olga"):
        await ticket(world, who)
    output = {each["user"]: each["admin"] for each in world.salt.workers["w1"].tickets}
    assert output == {"ada": True, "oscar": True, "uma": False, "adam": False, "olga": False}


async def test_users_ticket_is_no_secret_of_the_worker(world):
    """With one secret for both, a user could open the worker's console past the master, and keep it."""
    await create(world)
    made = await ticket(world)
    (registered,) = world.salt.workers["w1"].tickets
    assert registered["ticket_sha256"] != digest(made["ticket"])
    OFFERED.clear()
    async with view(made):
        (offered,) = OFFERED
    shown = ticket_in(word.strip() for line in offered for word in line.split(","))
    assert digest(shown) == registered["ticket_sha256"]
    assert shown not in json.dumps(made)


async def test_worker_cannot_send_the_master_elsewhere(world):
    """A redirect would lead to any host, with the secret of this console."""
    await create(world)
    visits = []

    async def note(websocket):
        visits.append(websocket)

    async with serve(note, "127.0.0.1", 0, subprotocols=["binary"]) as other:
        port = other.sockets[0].getsockname()[1]

        def redirect(connection, _request):
            answer = connection.respond(302, "elsewhere")
            answer.headers["Location"] = f"ws://127.0.0.1:{port}/"
            return answer

        async with serve(_echo, "127.0.0.1", 0, process_request=redirect) as server:
            world.salt.workers["w1"].worker_api = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}"
            assert "302" in await refused(await ticket(world))
    assert visits == []


async def test_enrolled_address_counts_and_no_other(world, monkeypatch):
    await create(world)
    worker = world.salt.workers["w1"]
    own, worker.worker_api = worker.worker_api, "wss://w2.example:8081"
    answer = await world.http.post("/vmachines/web01/console", headers=world.of("uma"))
    assert (answer.status_code, "--api-url" in answer.json()["detail"]) == (409, True)
    read = mapping.worker_of
    enrolled = own.replace("ws", "http")
    monkeypatch.setattr(mapping, "worker_of", lambda row: dataclasses.replace(read(row), api_url=enrolled))
    async with view(await ticket(world)):
        pass


async def test_console_works_over_tls_with_a_private_certificate(world, certificate):
    await create(world)
    async with worker_api(world, certificate), view(await ticket(world)) as screen:
        await screen.send(b"over TLS")
        assert await screen.recv() == b"over TLS"


async def test_untrusted_certificate_is_refused(world, tmp_path):
    await create(world)
    async with worker_api(world, self_signed(tmp_path)):
        output = await refused(await ticket(world), 503)
    assert "certificate verify failed" in output


async def test_ticket_is_good_once_for_thirty_seconds(world):
    await create(world)
    consoles = world.master.console_tickets
    made_at = world.master.context.clock()

    def at(seconds):
        consoles._context = dataclasses.replace(
            world.master.context, clock=lambda: made_at + timedelta(seconds=seconds)
        )

    at(0)
    early, late = await ticket(world), await ticket(world)
    at(29)
    async with view(early):
        assert "within 30 s" in await refused(early)
    at(31)
    assert "within 30 s" in await refused(late)
    assert "within 30 s" in await refused({**late, "ticket": "guess"})


async def test_ticket_of_another_vm_is_used_up_by_the_attempt(world):
    await create(world)
    await create(world, name="web02")
    made, others = await ticket(world), await ticket(world, vm="web02")
    assert "No valid ticket" in await refused({**made, "url": others["url"]})
    assert "No valid ticket" in await refused(made)
    async with view(others):
        pass


async def test_pages_from_elsewhere_use_no_ticket_up(world):
    await create(world)
    made = await ticket(world)
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1"):
        assert "may not show consoles" in await refused(made, origin=origin)
    async with view(made):
        pass


async def test_no_more_screens_than_are_set(world):
    await create(world)
    async with AsyncExitStack() as held:
        screens = [await held.enter_async_context(view(await ticket(world))) for _ in range(3)]
        made = await ticket(world)
        assert "3 consoles are open" in await refused(made, 429)
        for number, screen in enumerate(screens):
            await screen.send(b"mine %d" % number)
        for number, screen in enumerate(screens):
            assert await screen.recv() == b"mine %d" % number
        await screens[0].close()
        await eventually(lambda: world.master.console_tickets.open == 2)
        # The refusal has used no ticket up.
        async with view(made) as another:
            assert another
        await screens[1].send(b"still mine")
        assert await screens[1].recv() == b"still mine"


async def test_as_many_at_once_as_are_set_and_no_more(world):
    """All viewers come at once: each is counted before its ticket is checked."""
    await create(world)
    tickets = [await ticket(world) for _ in range(9)]
    async with AsyncExitStack() as held:
        opened = await asyncio.gather(
            *(held.enter_async_context(view(each)) for each in tickets), return_exceptions=True
        )
        errors = [each for each in opened if isinstance(each, BaseException)]
        assert 0 < len(opened) - len(errors) <= 3
        assert {error.response.status_code for error in errors} == {429}
    await eventually(lambda: world.master.console_tickets.open == 0)


async def test_both_ends_close_whichever_went(world):
    await create(world)
    async with worker_api(world):
        orphan = await held_open(await ticket(world))
    assert (await closed(orphan))[0] in (1000, 1001)
    async with worker_api(world):
        async with view(await ticket(world)):
            await eventually(lambda: world.master.console_tickets.open == 1)
        await eventually(lambda: world.master.console_tickets.open == 0)


async def held_open(made):
    screen = await opening(made)
    assert await screen.recv() == GREETING
    return screen
