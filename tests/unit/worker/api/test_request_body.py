"""Parameters of a call: each is given once, in one place, in a form that has one meaning."""

import pytest
from fastapi import Request

from worker_service.api import request_body
from worker_service.core.errors import BadRequest
from worker_service.operations import validation

JSON, FORM = "application/json", "application/x-www-form-urlencoded"
PARTS = "multipart/form-data; boundary=b"


def part(name, value, extra=""):
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n{value}\r\n'


def requested(query="", body="", kind=JSON, *, kinds=None):
    headers = [(b"content-type", each.encode()) for each in kinds or [kind]]
    scope = {"type": "http", "method": "POST", "path": "/", "query_string": query.encode(), "headers": headers}

    async def receive():
        return {"type": "http.request", "body": body.encode(), "more_body": False}

    return request_body.read(Request(scope, receive))


@pytest.mark.parametrize(
    ("given", "parameters"),
    [
        (("name=a&pin=true",), {"name": "a", "pin": "true"}),
        (("", '{"name": "a", "list": [{"x": 1}, {"x": 2}]}'), {"name": "a", "list": [{"x": 1}, {"x": 2}]}),
        (("", "name=a&pin=", FORM), {"name": "a", "pin": ""}),
        (("", part("name", "a") + part("pin", "1") + "--b--\r\n", PARTS), {"name": "a", "pin": "1"}),
        (("name=a", '{"pin": true}'), {"name": "a", "pin": True}),
        (("name=a", "pin=1", FORM), {"name": "a", "pin": "1"}),
    ],
)
async def test_each_parameter_once_is_read(given, parameters):
    assert await requested(*given) == parameters


@pytest.mark.parametrize(
    "given",
    [
        ("name=a&name=b",),
        ("name=a&name=a",),
        ("name=a&n%61me=b",),
        ("", '{"name": "a", "name": "b"}'),
        ("", '{"name": "a", "n\\u0061me": "b"}'),
        ("", '{"actions": [{"verb": "suspend", "verb": "destroy"}], "name": "x"}'),
        ("", '{"actions": [{"params": {"name": 1, "name": 2}}], "name": "x"}'),
        ("", "name=a&name=b", FORM),
        ("", part("name", "a") + part("name", "b") + "--b--\r\n", PARTS),
        ("name=a", '{"name": "b"}'),
        ("name=a", '{"name": "a"}'),
        ("name=a", "name=b", FORM),
    ],
)
async def test_parameter_given_twice_is_refused(given):
    with pytest.raises(BadRequest, match=r"(name|verb).*once"):
        await requested(*given)


async def test_file_is_no_parameter():
    with pytest.raises(BadRequest, match="file"):
        await requested("", part("name", "a", '; filename="f"') + "--b--\r\n", PARTS)


async def test_body_of_two_types_is_refused():
    with pytest.raises(BadRequest, match="Content-Type"):
        await requested("", '{"name": "a"}', kinds=[JSON, FORM])


@pytest.mark.parametrize("body", ["NaN", '{"a": NaN}', '{"a": 1} x', "[]", '{"a": "\\ud800"}', '{"a": 1e999}'])
async def test_what_is_no_json_object_is_refused(body):
    with pytest.raises(BadRequest):
        await requested("", body)


def test_batch_as_text_has_each_field_once():
    text = '[{"verb": "suspend", "verb": "destroy", "uuid": "u", "generation": 1}]'
    with pytest.raises(BadRequest, match=r"verb.*once"):
        validation.actions(text)
    assert validation.actions('[{"verb": "suspend"}]') == [{"verb": "suspend"}]
