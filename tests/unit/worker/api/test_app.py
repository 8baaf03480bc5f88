"""Decisions of the worker API: accepted hosts and allowed pages."""

import pytest

from worker_service.api.origin_guard import refusal
from worker_service.core.settings import ApiSettings


@pytest.mark.parametrize(
    ("headers", "refused"),
    [
        ([("host", "localhost:8081")], False),
        ([("host", "localhost:8081"), ("origin", "http://localhost:8081")], False),
        ([("host", "localhost:8081"), ("origin", "https://LOCALHOST:8081")], False),
        ([("host", "localhost:8081"), ("sec-fetch-site", "same-origin")], False),
        ([("host", "localhost:8081"), ("sec-fetch-site", "none")], False),
        ([], True),
        ([("host", "")], True),
        ([("host", "evil.example")], True),
        ([("host", "localhost.evil.example")], True),
        ([("host", "localhost@evil.example")], True),
        ([("host", "localhost"), ("host", "evil.example")], True),
        ([("host", "localhost"), ("origin", "null")], True),
        ([("host", "localhost"), ("origin", "")], True),
        ([("host", "localhost:8081"), ("origin", "http://localhost:8080")], True),
        ([("host", "localhost:8081"), ("origin", "http://localhost:8081.evil.example")], True),
        ([("host", "localhost:8081"), ("sec-fetch-site", "cross-site")], True),
        ([("host", "localhost:8081"), ("sec-fetch-site", "same-site")], True),
    ],
)
def test_forged_browser_requests_are_recognized(headers, refused):
    raw = [(key.encode(), value.encode()) for key, value in headers]
    assert (refusal({"type": "http", "headers": raw}, ApiSettings()) is not None) is refused
