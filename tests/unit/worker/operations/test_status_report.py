"""The reports of a worker stay small enough for Salt's events."""

import pytest

from worker_service.operations.status_report import fitting


@pytest.mark.parametrize(
    ("texts", "limit", "kept"),
    [
        ((), 0, ()),
        (("abc", "de"), 5, ("abc", "de")),
        (("abc", "de"), 4, ("abc",)),
        (("abc", "de", "f"), 3, ("abc",)),
        (("x" * 10, "a"), 9, ()),
        (["file:///srv/" + "x" * 1000] * 2000, 256 << 10, ("file:///srv/" + "x" * 1000,) * 259),
    ],
)
def test_images_beyond_the_limit_are_left_out(texts, limit, kept):
    assert fitting(texts, limit) == kept
