"""The log on a terminal and in a file: both are printable."""

import io
import json
import logging as stdlib

import pytest
import structlog

from master_service.core import logging

ATTACK = "\x1b]0;owned\x07\x9b2J\u202eEVIL\r"


class Screen(io.StringIO):
    """A stderr that may be a terminal."""

    def __init__(self, tty):
        super().__init__()
        self.tty = tty

    def isatty(self):
        return self.tty


@pytest.fixture(autouse=True)
def as_before():
    """Leave the logging of other tests alone."""
    levels = {name: stdlib.getLogger(name).level for name in ("httpx2", "httpcore2", "apscheduler", "alembic")}
    yield
    structlog.reset_defaults()
    for name, level in levels.items():
        stdlib.getLogger(name).setLevel(level)


@pytest.mark.parametrize("tty", [True, False])
def test_values_of_others_are_printable(monkeypatch, tty):
    screen = Screen(tty)
    monkeypatch.setattr("sys.stderr", screen)
    logging.configure("info")
    try:
        raise ValueError(ATTACK)
    except ValueError:
        structlog.get_logger().exception("poll_failed", worker=f"w1{ATTACK}", reasons=[ATTACK])
    written = screen.getvalue()
    assert "owned" in written
    for forbidden in ("\x1b]", "\x07", "\x9b", "\u202e", "\r"):
        assert forbidden not in written
    if not tty:
        assert json.loads(written)["worker"] == f"w1{ATTACK}"
