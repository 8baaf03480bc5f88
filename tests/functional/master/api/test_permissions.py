"""Permissions: every cell of role x route x own or foreign object, against the real application.

A new route fails here until it has its row in `policy.permissions.ROUTES`. A new path parameter needs an example in
EXAMPLES, a new kind of object its maker in `thing`.
"""

import asyncio
import itertools
import re
from dataclasses import dataclass

import pytest
from fastapi.routing import iter_route_contexts

from master_service.api import create_app
from master_service.api.protocol import auth
from master_service.core.settings import Settings
from master_service.policy.accounts import NewToken
from master_service.policy.audit import MASTER, Actor
from master_service.policy.permissions import PATH_PARAMETERS, ROUTES, Reach, Role, Scope, Subject, Verdict, verdict
from tests.functional.master.conftest import LIMIT_S, running_world
from tests.functional.master.databases import on_both
from worker_service.contract import Spec

EXAMPLES = {"worker_id": "w1", "disk": "hda", "uuid": "11111111-2222-4333-8444-555555555555"}
"""Values of path parameters that name no subject."""
OPEN = {"GET /openapi.json", "GET /docs", "GET /docs/api_docs.js", "GET /docs/swagger_ui/{path:path}"}
"""The description of the API tells nothing about any user's things."""
BLOCKS = {"DELETE /vmachines/{id_or_name}"} | {
    f"POST /vmachines/{{id_or_name}}/{verb}" for verb in ("suspend", "resume", "destroy", "save_retry")
}
"""They are not waited for here."""
WHO = {Role.ADMIN: "ada", Role.OPERATOR: "oscar", Role.USER: "uma", Role.VIEWER: "vera"}
OTHER = "otto"


def routes_of(app):
    for context in iter_route_contexts(app.routes):
        for method in getattr(context, "methods", None) or {"WEBSOCKET"}:
            if method != "HEAD":
                yield f"{method} {context.path.removeprefix(auth.PREFIX)}"


CELLS = sorted(itertools.product((key for key, rule in ROUTES.items() if not rule.public), Role, (True, False)))


@dataclass
class Answer:
    status: int
    body: bytes


class Tenants:
    """A running master with one user per role, and another user who owns things too."""

    def __init__(self, world, app):
        self.world, self.app = world, app
        self._numbers = itertools.count()

    async def create_users(self):
        for role, name in [*WHO.items(), (Role.USER, OTHER)]:
            await self.world.person(name, role)

    async def thing(self, subject, owner):
        """Make a fresh object of this kind and owner, and return the value for its path."""
        match subject:
            case Subject.VM:
                name = f"{owner}-{next(self._numbers)}"
                spec = Spec(name=name, mem_size=4, hda_image="file:/srv/a.qcow2", run_policy="manual")
                account = await self.world.master.accounts.user(owner)
                await self.world.master.vms.create(spec, Actor(name=owner, account_id=account.id))
                return name
            case Subject.USER:
                return owner
            case Subject.TOKEN:
                token = NewToken(user=owner, kind="token", label="", scopes=frozenset(), expires_at=None)
                await self.world.master.context.store.tokens.add(token, MASTER, self.world.master.context.clock())
                return token.id
            case Subject.OPERATION:
                vm = await self.thing(Subject.VM, owner)
                (line,) = await self.world.master.context.store.operations.page(None, vm, None, 1)
                return str(line.id)
        raise AssertionError(subject)

    async def ask(self, key, who, given="", token=None):
        """The answer's status, and its body as far as it comes at once: streams never end by themselves."""
        method, _, path = key.partition(" ")
        prefix = "" if path in ("/healthz", "/readyz", "/version", "/schemas/vms.json", "/metrics") else auth.PREFIX
        values = dict.fromkeys(PATH_PARAMETERS.values(), given) | EXAMPLES
        path = prefix + re.sub(r"\{(\w+)\}", lambda match: values[match[1]], path)
        headers = [(b"host", b"master")]
        if who:
            headers.append((b"authorization", f"Bearer {token or f'token-of-{who}'}".encode()))
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"timeout_s=0" if key in BLOCKS else b"",
            "root_path": "",
            "headers": headers, "client": ("127.0.0.1", 1), "server": ("master", 80),
        }  # fmt: skip
        text, answer = asyncio.Event(), Answer(0, b"")
        requests = iter([{"type": "http.request", "body": b"", "more_body": False}])

        async def receive():
            if message := next(requests, None):
                return message
            return await asyncio.Event().wait()

        async def send(message):
            if message["type"] == "http.response.start":
                answer.status = message["status"]
            else:
                answer.body += message.get("body", b"")
                text.set()

        task = asyncio.create_task(self.app(scope, receive, send))
        waiting = asyncio.create_task(text.wait())
        async with asyncio.timeout(LIMIT_S):
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        for running in (task, waiting):
            running.cancel()
        await asyncio.gather(task, waiting, return_exceptions=True)
        return answer


@pytest.fixture
async def tenants(settings, salt):
    async with running_world(settings, salt) as world:
        made = Tenants(world, world.http._transport.app)
        await made.create_users()
        yield made


def test_every_route_has_a_row_and_every_row_a_route():
    assert set(routes_of(create_app(Settings()))) - OPEN == set(ROUTES)


def test_openapi_says_which_routes_need_no_token():
    paths = create_app(Settings()).openapi()["paths"]
    keys = {
        f"{method.upper()} {path.removeprefix(auth.PREFIX)}": "security" not in operation
        for path, methods in paths.items()
        for method, operation in methods.items()
    }
    assert keys == {key: ROUTES[key].public for key in keys}


async def test_every_role_meets_its_rule_at_every_route(tenants):
    wrong = []
    for key, role, own in CELLS:
        rule, who = ROUTES[key], WHO[role]
        owner = who if own else OTHER
        given = await tenants.thing(rule.subject, owner) if rule.subject else ""
        answer = await tenants.ask(key, who, given)
        hidden = b'"code":"not_found"' in answer.body
        if answer.status == 403:
            got = Verdict.FORBIDDEN
        elif rule.subject and hidden:
            got = Verdict.HIDDEN
        else:
            got = Verdict.ALLOWED
        expected = verdict(rule, role, own=own)
        if got is not expected or answer.status in (401, 500):
            wrong.append((key, role.value, "own" if own else "other", expected.value, answer))
        if not key.startswith("GET "):
            await tenants.create_users()  # restore a deleted user
    assert wrong == []


async def test_hidden_and_missing_objects_answer_alike(tenants):
    for key, rule in ROUTES.items():
        if rule.subject is None or rule.user is not Reach.OWN:
            continue
        theirs = await tenants.thing(rule.subject, OTHER)
        hidden, absent = await tenants.ask(key, "uma", theirs), await tenants.ask(key, "uma", "ghost")
        assert (hidden.status, hidden.body.replace(theirs.encode(), b"ghost")) == (404, absent.body), key


@on_both
async def test_lists_omit_objects_of_others(tenants):
    theirs, own = await tenants.thing(Subject.VM, OTHER), await tenants.thing(Subject.VM, "uma")
    for key, rule in ROUTES.items():
        if key.startswith("GET ") and rule.subject is None and rule.user is Reach.OWN:
            answer = await tenants.ask(key, "uma")
            assert theirs.encode() not in answer.body, key
            assert OTHER.encode() not in answer.body, key
    assert own.encode() in (await tenants.ask("GET /vmachines", "uma")).body


async def test_non_public_route_without_a_token_answers_401(tenants):
    for key, rule in ROUTES.items():
        if not rule.public:
            assert (await tenants.ask(key, None, "x")).status == 401, key
            assert (await tenants.ask(key, "ada", "x", token="unknown")).status == 401, key


async def test_route_without_a_row_is_refused_even_to_admins(tenants, monkeypatch):
    monkeypatch.delitem(auth.ROUTES, "GET /workers")
    assert (await tenants.ask("GET /workers", "ada")).status == 403


async def test_scope_that_the_token_has_not_is_refused(tenants):
    secret = await tenants.world.person("anna", Role.ADMIN, scopes=frozenset({Scope.READ}))
    for key, rule in ROUTES.items():
        if not rule.public:
            answer = await tenants.ask(key, "anna", "x", token=secret)
            assert (answer.status == 403) is (rule.scope is not Scope.READ), key


async def test_handlers_are_given_the_durable_id(tenants, monkeypatch):
    """A checked name may belong to another user a moment later."""
    name = await tenants.thing(Subject.VM, "uma")
    vm = await tenants.world.master.vms.get(name)
    given = []

    async def get(id_or_name):
        given.append(id_or_name)
        return vm

    monkeypatch.setattr(tenants.world.master.vms, "get", get)
    assert (await tenants.ask("GET /vmachines/{id_or_name}", "uma", name)).status == 200
    assert given == [vm.uuid]
