"""Console tickets: the origins of pages, and a worker's reply."""

import pytest

from master_service.api.routes.console import origins
from master_service.core.errors import Conflict, Forbidden, NotFound, SaltError, TooMany
from master_service.core.settings import Settings
from master_service.services.console_tickets import url_in_reply


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"}),
        ({"port": 80}, {"http://127.0.0.1", "http://localhost", "http://[::1]"}),
        ({"host": "::1"}, {"http://127.0.0.1:8080", "http://localhost:8080", "http://[::1]:8080"}),
        ({"public_url": "https://Saltern.example/"}, {"https://saltern.example"}),
        ({"public_url": "https://saltern.example:443"}, {"https://saltern.example"}),
        ({"public_url": "https://saltern.example:8443/"}, {"https://saltern.example:8443"}),
        ({"public_url": "http://saltern.example:80"}, {"http://saltern.example"}),
    ],
)
def test_allowed_origins_are_as_browsers_write_them(given, expected):
    assert origins(Settings(**given)) == expected


@pytest.mark.parametrize(
    ("reply", "error"),
    [
        (None, SaltError),
        ("The minion function caused an exception", SaltError),
        ({"success": True}, SaltError),
        ({"success": True, "url": 5}, SaltError),
        ({"success": False, "message": "Installing 1 of 2.", "code": "policy"}, Forbidden),
        ({"success": False, "message": "no", "code": "not_found"}, NotFound),
        ({"success": False, "message": "no", "code": "too_many_requests"}, TooMany),
        ({"success": False, "message": "off", "code": "conflict"}, Conflict),
    ],
)
def test_bad_reply_gives_no_upstream(reply, error):
    with pytest.raises(error):
        url_in_reply(reply, "w1", "web01")
