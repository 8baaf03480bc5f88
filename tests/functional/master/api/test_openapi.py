"""A whole master on loopback, called by its OpenAPI document and against it: each answer is a documented one."""

import shutil
import threading
from contextlib import suppress
from unittest import SkipTest

import pytest
import requests
import schemathesis
import uvicorn
from hypothesis import HealthCheck, given, settings, strategies
from hypothesis import Phase as Part
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from master_service.api import create_app
from master_service.core.settings import Settings
from tests.functional.master.conftest import LIMIT_S, SPEC, TOKEN
from tests.functional.master.enrolled import enroll
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.lib.support import eventually

CONFORM = [content_type_conformance, response_schema_conformance, status_code_conformance]
MINE = {"Authorization": f"Bearer {TOKEN}"}
NAMED = {503, 507}
"""5xx that the contract has for what no bug is: Salt does not answer, no room."""
THERE = {
    "id_or_name": ("web01", "web02"),
    "worker_id": ("w1",),
    "disk": ("hda", "hdb"),
    "name": ("me", "maria"),
    "token_id": ("current",),
    "operation_id": ("1", "2"),
    "uuid": ("11111111-2222-4333-8444-555555555555",),
}
"""Existing values for each parameter of a path: random paths meet nothing but 404."""
FRAMING = {"content-length", "transfer-encoding", "connection", "expect", "upgrade", "host"}
"""Headers about the message itself: the HTTP server refuses wrong ones before any operation is known."""
ENDLESS = "GET /api/v1/events"


@pytest.fixture(scope="module")
def url(tmp_path_factory, empty_sqlite):
    folder = tmp_path_factory.mktemp("openapi")
    shutil.copy(empty_sqlite, folder / "master.db")
    (folder / "admin.token").touch(mode=0o600)
    (folder / "admin.token").write_text(TOKEN)
    configured = Settings(
        database_url=f"sqlite:///{folder}/master.db",
        admin_token_file=folder / "admin.token",
        block_timeout_s=0.01,
    )
    salt = FakeSalt(FakeWorker("w1"), FakeWorker("w2"))
    enroll(configured, salt)
    app = create_app(configured, salt)
    limits = {"timeout_keep_alive": int(LIMIT_S), "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **limits))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(30)


@pytest.fixture
def http():
    """One connection for all calls."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


def restored(http, url):
    """Restore the objects that THERE names, after calls that changed them."""
    for name in THERE["id_or_name"]:
        http.post(f"{url}/api/v1/vmachines", json=SPEC | {"name": name}, headers=MINE, timeout=LIMIT_S)
    http.post(f"{url}/api/v1/users", json={"name": "maria"}, headers=MINE, timeout=LIMIT_S)


@pytest.mark.parametrize("mode", GenerationMode)
def test_every_answer_is_a_documented_one(url, http, mode):
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    observed = set()
    for found in schema.get_all_operations():
        operation = found.ok()
        if operation.label == ENDLESS:
            continue
        restored(http, url)

        @given(case=operation.as_strategy(mode), there=strategies.data())
        @settings(max_examples=10, phases=[Part.generate], suppress_health_check=list(HealthCheck), database=None)
        def call(case, there):
            for name in case.path_parameters or ():
                if there.draw(strategies.booleans()):
                    case.path_parameters[name] = there.draw(strategies.sampled_from(THERE[name]))
            wait_s = (case.query or {}).get("timeout_s")
            if isinstance(wait_s, int | float) and wait_s > 0:  # as good as any, and over sooner
                case.query["timeout_s"] = 0.01
            headers = {name: value for name, value in (case.headers or {}).items() if name.lower() not in FRAMING}
            case.headers = headers | MINE
            answer = case.call(base_url=url, session=http, timeout=LIMIT_S)
            observed.add(answer.status_code)
            assert answer.status_code < 500 or answer.status_code in NAMED, answer.text
            case.validate_response(answer, checks=CONFORM)

        with suppress(SkipTest, Unsatisfiable):  # without parameters no value can be wrong
            call()
    assert {200, 400} & observed
