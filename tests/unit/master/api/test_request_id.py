"""The id of a request: in the answer, in each line of the log, and never what a client must not write there."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from master_service.api.protocol import request_id
from master_service.core import logging


@pytest.fixture(scope="module")
def client():
    app = FastAPI()

    @app.get("/")
    async def answer():
        return {"current": request_id.current(), "logged": logging._add_request_id(None, "info", {"event": "at_work"})}

    return TestClient(request_id.around(app))


@pytest.mark.parametrize("given", ["mine-1", "a" * 128, "AZaz09._~+/=-"], ids=["usual", "longest", "signs"])
def test_clients_own_id_is_in_answer_and_log(client, given):
    answer = client.get("/", headers={"X-Request-ID": given})
    assert answer.headers.get_list("X-Request-ID") == [given]
    assert answer.json() == {"current": given, "logged": {"event": "at_work", "request": given}}


@pytest.mark.parametrize(
    "given",
    [None, "", "a b", "x" * 129, "\u00e4", 'a"b', "a;b"],
    ids=["none", "empty", "blank", "long", "umlaut", "quote", "semicolon"],
)
def test_other_ids_are_replaced_and_not_logged(client, given):
    headers = {} if given is None else {"X-Request-ID": given.encode()}
    answer = client.get("/", headers=headers)
    (made,) = answer.headers.get_list("X-Request-ID")
    assert len(made) == 36
    assert answer.json() == {"current": made, "logged": {"event": "at_work", "request": made}}


def test_two_requests_have_two_ids(client):
    assert client.get("/").json() != client.get("/").json()


def test_log_outside_a_request_has_no_id():
    assert not request_id.current()
    assert logging._add_request_id(None, "info", {"event": "started"}) == {"event": "started"}
