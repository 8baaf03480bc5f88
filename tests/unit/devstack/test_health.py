"""What a health check says of a service that is not ready."""

import pytest

from devstack.health import unready_reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (
            {"checks": {"database": {"ok": True, "message": "fine"}, "workers": {"ok": False, "message": "no answer"}}},
            "workers no answer",
        ),
        ({"detail": "x"}, "{'detail': 'x'}"),
        ("<html>", "<html>"),
    ],
)
def test_unready_body_gives_the_failed_checks(body, reason):
    assert unready_reason(body) == reason
