"""Addresses that a webhook may be posted to, and the error for a receiver that does not answer."""

import asyncio
import socket
from datetime import UTC, datetime

import httpx2
import pytest

from master_service.core.errors import NotDelivered
from master_service.policy.incidents import Notice
from master_service.policy.notice_formats import Channel, Delivery
from master_service.services import webhook
from tests.lib.support import PATIENCE_S
from tests.unit.master.builders import SETTINGS
from worker_service.contract.public_address import is_allowed as allowed

NEVER = [
    "0.0.0.0", "10.0.0.1", "100.64.0.1", "127.0.0.1", "169.254.169.254", "192.168.1.1", "224.0.0.1", "240.0.0.1",
    "255.255.255.255", "::", "::1", "fd00:ec2::254", "fe80::1", "fec0::1", "ff02::1", "ff0e::1",
    "::ffff:127.0.0.1", "::127.0.0.1", "::ffff:0:127.0.0.1", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a9fe:a9fe",
    "2002:7f00:1::", "2001:0:7f00:1::",
]  # fmt: skip


@pytest.mark.parametrize("address", NEVER)
def test_non_public_address_gets_nothing(address):
    assert not allowed(address, [])
    assert not allowed(address, ["198.51.100.0/24"])


@pytest.mark.parametrize("address", ["8.8.8.8", "::ffff:8.8.8.8", "2606:4700::1111"])
def test_public_address_is_allowed(address):
    assert allowed(address, [])


@pytest.mark.parametrize(
    ("network", "address"),
    [("127.0.0.0/8", "127.0.0.1"), ("127.0.0.0/8", "::ffff:127.0.0.1"), ("fec0::/10", "fec0::1")],
)
def test_networks_of_the_site_are_allowed(network, address):
    assert allowed(address, [network])


NOW = datetime(2026, 1, 1, tzinfo=UTC)


def delivery(url):
    notice = Notice(id=1, at=NOW, kind="test", owner="uma", owner_id="1", uuid="", name="uma", text="")
    return Delivery(
        id=1, user="uma", channel=Channel.WEBHOOK, attempts=0, notice=notice, email="", webhook_url=url,
        webhook_secret="",
    )  # fmt: skip


@pytest.mark.parametrize("error", [TimeoutError, httpx2.ReadTimeout("x"), httpx2.ConnectTimeout("x")], ids=str)
async def test_timeout_message_does_not_depend_on_the_clock(monkeypatch, error):
    """The client's own limit equals the total limit: both are over after the process was stopped."""

    async def send(*_):
        raise error

    monkeypatch.setattr(webhook, "_send", send)
    here = SETTINGS.model_copy(update={"webhook_networks": ["127.0.0.0/8"], "webhook_timeout_s": 7.5})
    with pytest.raises(NotDelivered, match=r"^127\.0\.0\.1:1 did not answer within 7\.5 s\.$"):
        await webhook.post(delivery("http://127.0.0.1:1/s3cret"), here, NOW)


@pytest.mark.parametrize(
    ("addresses", "networks", "outcome"),
    [
        (["127.0.0.2", "127.0.0.1"], ["127.0.0.0/8"], ""),
        (["::1", "127.0.0.1"], ["127.0.0.0/8", "::1/128"], ""),
        (["10.0.0.1", "127.0.0.1"], ["127.0.0.0/8"], ""),  # only allowed ones are tried
        (["127.0.0.2", "127.0.0.3"], ["127.0.0.0/8"], "failed"),
        (["127.0.0.1", "127.0.0.2"], [], "not public"),
    ],
)
async def test_allowed_addresses_are_tried_in_turn(monkeypatch, httpserver, addresses, networks, outcome):
    async def getaddrinfo(_loop, _host, port, **_options):
        return [info for each in addresses for info in socket.getaddrinfo(each, port, type=socket.SOCK_STREAM)]

    here = SETTINGS.model_copy(update={"webhook_networks": networks, "webhook_timeout_s": PATIENCE_S})
    httpserver.expect_request("/hook").respond_with_data(b"")
    post = webhook.post(delivery(f"http://receiver.example:{httpserver.port}/hook"), here, NOW)
    with monkeypatch.context() as patch:
        patch.setattr(asyncio.BaseEventLoop, "getaddrinfo", getaddrinfo)
        if outcome:
            with pytest.raises(NotDelivered, match=outcome):
                await post
        else:
            await post
    requested = [request.headers["Host"] for request, _answer in httpserver.log]
    assert requested == ([] if outcome else [f"receiver.example:{httpserver.port}"])


@pytest.mark.parametrize(
    ("status", "retry_after", "wait_s"),
    [(503, "45", 45), (429, "Thu, 01 Jan 2026 00:01:00 GMT", 60), (503, "86400", 600), (503, "", 0), (500, "soon", 0)],
)
async def test_receiver_gets_the_pause_that_it_asks_for(httpserver, status, retry_after, wait_s):
    here = SETTINGS.model_copy(update={"webhook_networks": ["127.0.0.0/8"], "webhook_timeout_s": PATIENCE_S})
    httpserver.expect_request("/hook").respond_with_data(b"", status=status, headers={"Retry-After": retry_after})
    with pytest.raises(NotDelivered, match=f"answered {status}") as failure:
        await webhook.post(delivery(f"http://127.0.0.1:{httpserver.port}/hook"), here, NOW)
    assert (failure.value.wait_s, failure.value.retry) == (wait_s, True)
    assert (f"after {wait_s} s." in str(failure.value)) == bool(wait_s)
