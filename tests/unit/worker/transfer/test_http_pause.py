"""The pause that a server asks for with Retry-After: how long it is, and that fetches and saves keep it."""

from datetime import UTC, datetime, timedelta

import httpx2
import pytest

from worker_service.core.errors import SalternError, TransferFailed
from worker_service.transfer.http import MAX_PAUSE_S, requested_pause_s, require_success
from worker_service.transfer.http_put import _with
from worker_service.transfer.uri import parse

NOW = datetime(2026, 11, 30, 5, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "pause_s"),
    [
        ("", 0),
        ("0", 0),
        ("45", 45),
        ("3600", 3600),
        ("Mon, 30 Nov 2026 05:00:45 GMT", 45),
        ("Monday, 30-Nov-26 05:00:45 GMT", 45),
        ("Mon Nov 30 05:00:45 2026", 45),
        ("Mon, 30 Nov 2026 06:00:45 +0100", 45),
        ("Mon, 30 Nov 2026 04:59:00 GMT", 0),
        ("Mon, 30 Nov 2026 05:00:00 GMT", 0),
        ("-5", 0),
        ("4.5", 0),
        ("soon", 0),
        ("Mon, 99 Nov 2026 05:00:45 GMT", 0),
        ("9" * 400, 0),
        ("٤٥", 0),
    ],
)
def test_retry_after_has_seconds_or_a_date(text, pause_s):
    assert requested_pause_s(text, NOW) == pause_s


def failure(status, retry_after):
    answer = httpx2.Response(status, headers={"Retry-After": retry_after} if retry_after else {})
    with pytest.raises(TransferFailed) as failed:
        require_success(parse("https://store.example/a"), answer)
    return failed.value


@pytest.mark.parametrize("status", [429, 503, 500, 502, 504])
def test_passing_fault_is_waited_for(status):
    err = failure(status, "45")
    assert (err.retry, err.wait_s) == (True, 45)
    assert f"answered {status}" in str(err)
    assert str(err).endswith("The server asks for a pause of 45 s.")
    assert failure(status, "").wait_s == 0


@pytest.mark.parametrize("retry_after", ["601", "86400", (datetime.now(UTC) + timedelta(days=9)).strftime("%c")])
def test_pause_is_bounded(retry_after):
    assert failure(503, retry_after).wait_s == MAX_PAUSE_S == 600


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_lasting_fault_is_not_waited_for(status):
    err = failure(status, "45")
    assert (err.retry, err.wait_s) == (False, 0)


@pytest.mark.parametrize("more", [None, "It was removed."])
def test_error_that_says_more_keeps_the_pause(more):
    err = _with(TransferFailed("Busy.", wait_s=45), more)
    assert (type(err), err.wait_s, err.retry) == (TransferFailed, 45, True)
    assert SalternError("x").wait_s == 0
