"""Decisions of the worker API: rate limits, accepted host names, allowed pages."""

import pytest
from starlette.datastructures import Headers

from worker_service.api.origin_guard import host_name, refusal
from worker_service.api.rate_limit import Limiter
from worker_service.core.settings import ApiSettings


def test_caller_may_make_so_many_calls():
    limiter = Limiter(10)
    assert [limiter.wait_s("a", 0.0) for _ in range(20)] == [0.0] * 20
    assert limiter.wait_s("a", 0.0) == pytest.approx(0.1)
    assert limiter.wait_s("b", 0.0) == 0.0  # callers do not share
    assert limiter.wait_s("a", 0.05) == pytest.approx(0.05)
    assert limiter.wait_s("a", 0.1) == 0.0
    assert limiter.wait_s("a", 0.1) > 0
    assert [limiter.wait_s("a", 1000.0) for _ in range(21)].count(0.0) == 20  # never more than the bucket holds


def test_callers_without_end_take_no_memory_without_end():
    limiter = Limiter(1)
    for number in range(12_000):
        limiter.wait_s(str(number), 0.0)
    assert len(limiter._buckets) == 10_000


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("127.0.0.1:8081", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.1"),
        ("[::1]:8081", "::1"),
        ("[::1]", "::1"),
        ("LOCALHOST:1", "localhost"),
        ("", ""),
        ("localhost@evil.example:80", "localhost@evil.example"),
    ],
)
def test_accepted_host_names_are_configured(host, name):
    assert host_name(host) == name


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
    assert (refusal(Headers(raw=raw), ApiSettings()) is not None) is refused
