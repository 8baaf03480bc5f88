"""Progress is published at a limited rate, and its last byte always."""

from types import SimpleNamespace

import pytest

from worker_service.contract import TRIES, Progress
from worker_service.core import progress
from worker_service.core.settings import Settings


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test sets."""
    now = [100.0]
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_throttle_limits_the_rate(clock):
    published = []
    report = progress.throttle("fetch", published.append)
    for seconds, done in ((1.0, 10), (1.2, 20), (1.5, 30), (1.6, 40)):
        clock[0] = 100.0 + seconds
        report(done, 40)
    assert published == [
        Progress(phase="fetch", done=10, total=40, rate=10.0, eta_s=3.0),
        Progress(phase="fetch", done=30, total=40, rate=20.0, eta_s=0.5),
        Progress(phase="fetch", done=40, total=40, rate=pytest.approx(25.0), eta_s=0.0),
    ]


def test_throttle_unknown_total_has_no_eta(clock):
    published = []
    report = progress.throttle("fetch", published.append)
    report(0, None)
    clock[0] += 2
    report(10, None)
    assert published == [
        Progress(phase="fetch", done=0, total=None, rate=None, eta_s=None),
        Progress(phase="fetch", done=10, total=None, rate=5.0, eta_s=None),
    ]


def test_retry_delay_doubles_up_to_the_last_try():
    delay = Settings(retry_delay_s=10.0).retry_delay
    assert [delay(tries).total_seconds() for tries in range(1, TRIES + 2)] == [10.0, 20.0, 40.0, 40.0]
