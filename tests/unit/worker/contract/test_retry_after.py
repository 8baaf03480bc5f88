"""The pause that a server asks for with Retry-After: seconds or a date, and anything else."""

from datetime import UTC, datetime

import pytest

from worker_service.contract.retry_after import requested_pause_s

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
