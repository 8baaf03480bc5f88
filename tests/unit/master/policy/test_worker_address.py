"""The address of a worker's consoles: the enrolled one, else one that is the worker's own."""

import pytest

from master_service.policy.worker_address import check_api_url, console_url, disk_url

UUID = "6d6c7f0e-0000-4000-8000-000000000001"
PATH = f"/vmachines/{UUID}/screen"
ALLOWED = ("127.0.0.1", "::1", "*.hv.example", "w3")


def of(worker, reported, *, enrolled="", allowed=ALLOWED):
    return console_url(worker, UUID, enrolled=enrolled, reported=reported, allowed=allowed)


@pytest.mark.parametrize(
    ("enrolled", "connected"),
    [
        ("https://w1.hv.example:8081", "wss://w1.hv.example:8081"),
        ("https://W1.hv.example:8081/", "wss://w1.hv.example:8081"),
        ("https://proxy.example/w1", "wss://proxy.example/w1"),
        ("https://[fd00::1]:8081", "wss://[fd00::1]:8081"),
        ("http://127.0.0.1:8081", "ws://127.0.0.1:8081"),
    ],
)
@pytest.mark.parametrize(
    "reported",
    ["wss://w2.hv.example:8081" + PATH, "ws://127.0.0.1:8000/login", "wss://w1.hv.example:8081" + PATH, "", "wss://["],
)
def test_enrolled_address_counts_whatever_is_reported(enrolled, connected, reported):
    assert of("w1", reported, enrolled=enrolled, allowed=()) == connected + PATH


@pytest.mark.parametrize(
    ("worker", "url"),
    [
        ("w1.hv.example", f"wss://w1.hv.example:8081{PATH}"),
        ("W1.hv.example", f"wss://w1.hv.example:8081{PATH}"),
        ("w1", f"wss://w1.hv.example:8081{PATH}"),
        ("w3", f"wss://w3{PATH}"),
        ("w1", f"ws://127.0.0.1:8081{PATH}"),
        ("w1", f"ws://127.0.0.1{PATH}"),
        ("w1", f"ws://[::1]:8081{PATH}"),
        ("w1", f"wss://127.0.0.1:8081{PATH}"),
    ],
)
def test_address_that_is_the_workers_own_is_used(worker, url):
    assert of(worker, url) == url


@pytest.mark.parametrize(
    ("worker", "url"),
    [
        ("w1", f"wss://w2.hv.example:8081{PATH}"),
        ("w1.hv.example", f"wss://w2.hv.example:8081{PATH}"),
        ("w1", f"wss://w10.hv.example:8081{PATH}"),
        ("w1", f"wss://w1.evil.example:8081{PATH}"),
        ("w1", f"wss://w1.hv.example.evil.example:1{PATH}"),
        ("", f"wss://.hv.example{PATH}"),
        ("w4", f"wss://w4{PATH}"),
        ("w1", f"ws://w1.hv.example:8081{PATH}"),
        ("w1", f"wss://me@w1.hv.example:8081{PATH}"),
        ("w1", f"wss://w1.hv.example:8081{PATH}?q"),
        ("w1", f"wss://w1.hv.example:8081{PATH}#f"),
        ("w1", "wss://w1.hv.example:8081/vmachines/list"),
        ("w1", f"wss://w1.hv.example:8081/elsewhere{PATH}"),
        ("w1", f"wss://w1.hv.example:8081{PATH.replace('1/', '2/')}"),
        ("w1", f"wss://w1.hv.example:8081{PATH}/"),
        ("w1", "ws://127.0.0.1:8000/login"),
        ("w1", f"wss://w1.hv.example:99999{PATH}"),
        ("w1", f"wss://w1.hv.example:port{PATH}"),
        ("w1", f"https://w1.hv.example:8081{PATH}"),
        ("w1", f"http://127.0.0.1:8081{PATH}"),
        ("w1", "wss://["),
        ("w1", ""),
    ],
)
def test_address_elsewhere_is_refused_with_advice(worker, url):
    with pytest.raises(ValueError, match=r"does not connect.*--api-url"):
        of(worker, url)


@pytest.mark.parametrize("url", ["https://w1.example:8081", "https://w1.example/w1/", "http://127.0.0.1:8081"])
def test_address_can_be_enrolled(url):
    assert check_api_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "w1.example:8081",
        "http://w1.example:8081",
        "wss://w1.example:8081",
        "https://",
        "https://me@w1.example",
        "https://w1.example?token=s3cret",
        "https://w1.example#x",
        "https://w1.example:99999",
        "https://w1.example/a b",
        "https://w1.example\n",
        "https://[",
    ],
)
def test_unusable_address_cannot_be_enrolled(url):
    with pytest.raises(ValueError, match="https://HOST:PORT") as err:
        check_api_url(url)
    assert "s3cret" not in str(err.value)


@pytest.mark.parametrize(
    ("base", "connected"),
    [("wss://w1.hv.example:8081", "https://w1.hv.example:8081"), ("ws://127.0.0.1:1/a", "http://127.0.0.1:1/a")],
)
def test_disk_is_beside_the_console(base, connected):
    assert disk_url(base + PATH, UUID, "hdb") == f"{connected}/vmachines/{UUID}/disks/hdb"
