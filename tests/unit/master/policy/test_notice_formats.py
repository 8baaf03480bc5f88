"""Formats of notifications: addresses, retries, signature, the body of a webhook, the mail."""

import dataclasses
import json
from datetime import UTC, datetime, timedelta

import pytest

from master_service.core.settings import Settings
from master_service.policy import notice_formats
from master_service.policy.incidents import Notice
from master_service.policy.notice_formats import Channel, Delivery, State

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
EARLIER = NOW - timedelta(hours=1)


def delivery(**changes):
    fields = {
        "id": 7,
        "at": EARLIER,
        "kind": "failed_to_save",
        "owner": "ada",
        "owner_id": "1",
        "uuid": "u-1",
        "name": "web01",
    }
    notice = Notice(**(fields | {"text": "web01: failed to save."} | changes))
    return Delivery(
        id=3,
        user="ada",
        channel=Channel.MAIL,
        attempts=0,
        notice=notice,
        email="ada@example.org",
        webhook_url="https://example.org/hook",
        webhook_secret="s3cret",
    )


@pytest.mark.parametrize(("tries", "pause_s"), [(1, 10), (2, 40), (3, 90), (1000, 3600)])
def test_retry_interval_grows_up_to_its_bound(tries, pause_s):
    settings = Settings(notice_retry_base_s=10, notice_retry_cap_s=3600)
    assert notice_formats.pause(tries, settings) == timedelta(seconds=pause_s)


@pytest.mark.parametrize(
    ("next_try_at", "delivered_at", "expected"),
    [
        (NOW, None, State.WAITING),
        (None, None, State.FAILED),
        (None, NOW, State.DELIVERED),
        (NOW, NOW, State.DELIVERED),
    ],
)
def test_delivery_state_follows_from_its_times(next_try_at, delivered_at, expected):
    assert notice_formats.state(next_try_at, delivered_at) is expected


@pytest.mark.parametrize("value", ["", "ada@example.org", "a.b+c@h-1.example.org"])
def test_email_address_is_accepted(value):
    assert notice_formats.email_address(value) == value


@pytest.mark.parametrize(
    "value", ["ada", "@example.org", "ada@", "ada@-host", "a b@example.org", "a@b@c", "a@" + "b" * 260, "a@b\n"]
)
def test_email_address_that_is_none_is_refused(value):
    with pytest.raises(ValueError, match="name@example"):
        notice_formats.email_address(value)


@pytest.mark.parametrize("value", ["", "https://example.org/hook?a=1", "http://127.0.0.1:8080/", "https://[::1]/a"])
def test_webhook_url_is_accepted(value):
    assert notice_formats.webhook_url(value) == value


@pytest.mark.parametrize(
    "value",
    [
        "example.org/hook",
        "ftp://example.org/a",
        "https:///a",
        "https://user@example.org/",
        "https://user:secret@example.org/",
        "https://example.org/#part",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://example.org:port/",
        "https://[::1/",
        "https://example.org/ a",
        "https://example.org/\n",
        "https://exämple.org/",
        "https://example.org/" + "a" * 2048,
    ],
)
def test_webhook_url_that_is_unusable_is_refused(value):
    with pytest.raises(ValueError, match="https://host/path"):
        notice_formats.webhook_url(value)


def test_signature_covers_time_and_body():
    made = notice_formats.signature("s3cret", 1700000000, b"{}")
    assert made == "t=1700000000,v1=97926816e98fbb41ccb1673225ff29a2f35369099990e1b1561651e7bd097ebf"
    others = [("other", 1700000000, b"{}"), ("s3cret", 1700000001, b"{}"), ("s3cret", 1700000000, b"[]")]
    assert made not in [notice_formats.signature(*other) for other in others]


def test_webhook_body_and_headers_match():
    body, headers = notice_formats.webhook(delivery(text="x" * 5000), NOW)
    content = json.loads(body)
    assert (content["delivery"], content["user"], content["notice"]["id"]) == (3, "ada", 7)
    assert content["notice"]["at"] == EARLIER.isoformat()
    assert len(content["notice"]["text"]) == 2000
    assert headers["Saltern-Delivery"] == "3"
    assert headers["Saltern-Signature"] == notice_formats.signature("s3cret", int(NOW.timestamp()), body)
    assert "s3cret" not in f"{body!r}{headers}"


def test_mail_has_one_message_id_for_each_delivery():
    first, again = (notice_formats.mail(delivery(), "saltern@example.org", now) for now in (EARLIER, NOW))
    assert first["Message-ID"] == again["Message-ID"] == f"<3.7.{int(EARLIER.timestamp())}@example.org>"
    assert (first["From"], first["To"]) == ("saltern@example.org", "ada@example.org")
    assert first["Subject"] == "Saltern: web01: failed to save"
    assert "About: VM web01 (u-1)" in first.get_content()


def test_mail_about_a_worker_has_no_control_characters():
    made = notice_formats.mail(delivery(uuid="", name="w1\n", text="a\x1b[31m\nb"), "saltern@example.org", NOW)
    assert made["Subject"] == "Saltern: w1 : failed to save"
    assert "About: w1" in made.get_content()
    assert "\x1b" not in made.get_content()
    assert made.get_content().startswith("a\\x1b[31m\nb")


def test_mail_with_a_code_says_what_it_is_for():
    requested = dataclasses.replace(delivery(), code="c0de")
    made = notice_formats.mail(requested, "saltern@example.org", NOW)
    assert made["Subject"] == "Saltern: confirm this address"
    assert "saltern users contact --code c0de" in made.get_content()
    assert "web01" not in made.as_string()
