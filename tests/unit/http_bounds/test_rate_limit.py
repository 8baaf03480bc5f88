"""Token buckets: how many calls each caller may make."""

import pytest

from http_bounds.rate_limit import Limiter


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


def test_caller_may_make_some_calls_at_once():
    limiter = Limiter(0.1, 3)
    assert [limiter.wait_s("a", 0.0) for _ in range(3)] == [0.0] * 3
    assert limiter.next_s("a", 0.0) == limiter.wait_s("a", 0.0) == pytest.approx(10)
    assert limiter.next_s("b", 0.0) == 0.0
    assert list(limiter.callers()) == ["a"]
    limiter.forget("a")
    assert limiter.wait_s("a", 0.0) == 0.0


def test_clock_that_is_set_back_takes_no_calls_away():
    limiter = Limiter(1, 2)
    assert limiter.wait_s("a", 1000.0) == 0.0
    assert limiter.wait_s("a", 0.0) == 0.0
    assert limiter.wait_s("a", 0.0) == pytest.approx(1)
