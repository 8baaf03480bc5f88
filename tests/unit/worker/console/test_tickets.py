"""Consoles: access, tickets, the filter for view-only clients, the path of the socket."""

import os
import struct
import time
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_service.console import policy
from worker_service.console.address import console_socket, console_url, origins
from worker_service.console.rfb_filter import NotRfb, ViewOnly
from worker_service.console.tickets import LIFE_S, Tickets, digest, make
from worker_service.contract import Code, Status
from worker_service.core.errors import BadRequest, HypervisorError, Refused
from worker_service.core.settings import ApiSettings
from worker_service.hypervisor.screenshot_png import png

ON = {Status.RUNNING, Status.SUSPENDED, Status.INSTALLING}


@pytest.mark.parametrize("status", Status)
@pytest.mark.parametrize("installing", [True, False])
@pytest.mark.parametrize("admin", [True, False])
def test_access_follows_from_the_record(status, installing, admin):
    refusal = policy.refusal("web01", status, "Installing 2 of 5.", installing=installing, admin=admin)
    assert (refusal is None) is (status in ON and (admin or not installing))
    if refusal is not None:
        assert "Installing 2 of 5." in str(refusal)
        assert refusal.http_status == (403 if status in ON else 409)


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def tickets(tmp_path, clock):
    return Tickets(tmp_path / "tickets", clock)


def issue(tickets, vm="u1", **rights):
    secret, key = make()
    tickets.issue(key, vm=vm, **{"user": "ann", "admin": False, "view_only": False, **rights})
    return secret


def test_ticket_is_good_once(tickets, tmp_path):
    secret = issue(tickets, view_only=True)
    (kept,) = (tmp_path / "tickets").iterdir()
    assert kept.name == digest(secret)
    assert secret not in kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    ticket = tickets.redeem(secret, "u1")
    assert (ticket.user, ticket.view_only, ticket.admin) == ("ann", True, False)
    with pytest.raises(Refused, match="No valid ticket"):
        tickets.redeem(secret, "u1")


@pytest.mark.parametrize("wrong", ["", "guess", "../tickets", "ticket\0", "é"])
def test_malformed_ticket_is_refused(tickets, wrong):
    issue(tickets)
    with pytest.raises(Refused) as caught:
        tickets.redeem(wrong, "u1")
    assert caught.value.code is Code.POLICY


def test_ticket_for_another_vm_is_used_up(tickets):
    secret = issue(tickets, vm="u1")
    for vm in ("u2", "u1"):
        with pytest.raises(Refused):
            tickets.redeem(secret, vm)


@pytest.mark.parametrize(("given", "opened"), [("hda", ""), ("", "hda"), ("hda", "hdb")])
def test_ticket_of_a_disk_opens_no_other_and_no_console(tickets, given, opened):
    secret = issue(tickets, disk=given)
    with pytest.raises(Refused):
        tickets.redeem(secret, "u1", opened)
    assert tickets.redeem(issue(tickets, disk=given), "u1", given).disk == given


def test_ticket_lasts_thirty_seconds(tickets, clock, tmp_path):
    early, late = issue(tickets), issue(tickets)
    clock.now += LIFE_S - 0.1
    assert tickets.redeem(early, "u1")
    clock.now += 0.1
    with pytest.raises(Refused):
        tickets.redeem(late, "u1")
    issue(tickets)
    clock.now += LIFE_S
    issue(tickets)  # sweeps
    assert len(list((tmp_path / "tickets").iterdir())) == 1


def test_ticket_ends_with_the_boot(tickets, tmp_path):
    secret = issue(tickets)
    path = tmp_path / "tickets" / digest(secret)
    path.write_text(path.read_text().replace('"boot":"', '"boot":"x'))
    with pytest.raises(Refused):
        tickets.redeem(secret, "u1")


def test_malformed_digest_is_refused(tickets):
    secret, key = make()
    for wrong in ("", secret, key.upper() if key.upper() != key else "X" * 64, key[:-1], key + "\n", f"../{key[3:]}"):
        with pytest.raises(BadRequest, match="ticket_sha256"):
            tickets.issue(wrong, vm="u1", user="", admin=False, view_only=False)
    tickets.issue(key, vm="u1", user="", admin=False, view_only=False)
    with pytest.raises(Refused, match="already"):
        tickets.issue(key, vm="u2", user="", admin=True, view_only=False)


def test_number_of_tickets_is_bounded(tickets, monkeypatch):
    monkeypatch.setattr("worker_service.console.tickets._MAX_TICKETS", 3)
    for _ in range(3):
        issue(tickets)
    with pytest.raises(Refused) as caught:
        issue(tickets)
    assert caught.value.code is Code.TOO_MANY


VERSION, NONE, ALONE = b"RFB 003.008\n", b"\x01", b"\x00"
HELLO = VERSION + NONE + ALONE
HELLO_PASSED = VERSION + NONE + b"\x01"
PASSED = {
    "SetPixelFormat": b"\x00" + b"p" * 19,
    "SetEncodings": b"\x02\x00" + struct.pack(">Hii", 2, 0, -223),
    "FramebufferUpdateRequest": struct.pack(">BBHHHH", 3, 1, 0, 0, 720, 400),
    "EnableContinuousUpdates": b"\x96" + b"c" * 9,
    "ClientFence": b"\xf8\0\0\0" + struct.pack(">IB", 1, 3) + b"abc",
}
DROPPED = {
    "KeyEvent": struct.pack(">BBHI", 4, 1, 0, 0x41),
    "PointerEvent": struct.pack(">BBHH", 5, 1, 10, 10),
    "ClientCutText": b"\x06\0\0\0" + struct.pack(">I", 5) + b"hello",
    "extended ClientCutText": b"\x06\0\0\0" + struct.pack(">i", -9) + b"\x04" * 9,
    "SetDesktopSize": b"\xfb\0" + struct.pack(">HHBB", 800, 600, 1, 0) + b"s" * 16,
    "xvp": b"\xfa\0\x01\x02",
    "QEMU key": b"\xff\0" + b"\x04" * 10,
    "QEMU audio": b"\xff\x01\0\0",
    "QEMU audio format": b"\xff\x01\0\x02" + b"f" * 6,
}
MESSAGES = st.lists(st.sampled_from(sorted(PASSED | DROPPED)))


@given(MESSAGES, st.lists(st.integers(1, 30)))
def test_view_only_filter_ignores_message_boundaries(names, cuts):
    stream = HELLO + b"".join((PASSED | DROPPED)[name] for name in names)
    passed, viewer = b"", ViewOnly()
    for cut in cuts:
        passed += viewer.feed(stream[:cut])
        stream = stream[cut:]
    passed += viewer.feed(stream)
    assert passed == HELLO_PASSED + b"".join(PASSED[name] for name in names if name in PASSED)


def test_older_client_gets_its_security_type():
    assert ViewOnly().feed(b"RFB 003.003\n\x00" + DROPPED["KeyEvent"]) == b"RFB 003.003\n\x01"


def test_long_text_is_dropped_without_being_kept():
    viewer = ViewOnly()
    viewer.feed(HELLO + b"\x06\0\0\0" + struct.pack(">I", 2**31))
    for _ in range(10):
        assert viewer.feed(b"\x04" * 100_000) == b""
    assert len(viewer._buffer) == 0


@pytest.mark.parametrize("message", [DROPPED["KeyEvent"], PASSED["FramebufferUpdateRequest"], DROPPED["xvp"]])
def test_many_small_messages_cost_as_much_as_they_are_long(message):
    """32 times as many: 32 times the work, with room for a noisy machine, and 1024 times if all is copied again."""

    def cost_s(times):
        stream, taken = message * times, []
        for _ in range(3):
            viewer = ViewOnly()
            viewer.feed(HELLO)
            begin = time.thread_time()
            viewer.feed(stream)
            taken.append(time.thread_time() - begin)
        return min(taken)

    assert cost_s(128_000) < 150 * cost_s(4_000)


@pytest.mark.parametrize(
    "stream",
    [b"GET / HTTP/1.1\r\n", b"RFB 004.000\n", VERSION + b"\x02", HELLO + b"\x01", HELLO + b"\x07", HELLO + b"\xff\x09"],
)
def test_malformed_rfb_ends_the_view(stream):
    with pytest.raises(NotRfb):
        ViewOnly().feed(stream)


def test_screenshot_becomes_a_png():
    made = png(b"P6\n2 1\n255\n" + b"\xff\0\0" + b"\0\xff\0")
    assert made.startswith(b"\x89PNG\r\n\x1a\n")
    assert struct.unpack(">II", made[16:24]) == (2, 1)
    body = made[made.index(b"IDAT") + 4 :]
    assert zlib.decompressobj().decompress(body) == b"\0\xff\0\0\0\xff\0"
    assert png(made) == made
    with pytest.raises(HypervisorError):
        png(b"")


def test_socket_whose_name_is_too_long_is_left_to_libvirt():
    uuid = "6d6c7f0e-0000-4000-8000-000000000000"
    root = Path("/" + "d" * 56)
    assert len(os.fsencode(root / "vms" / uuid / "screen/vnc")) == 109
    assert console_socket(root / "vms" / uuid) is None
    short = root.with_name("d" * 54)
    assert console_socket(short / "vms" / uuid) == short / "vms" / uuid / "screen/vnc"


def test_console_address_and_allowed_origins():
    assert console_url(ApiSettings(), "u") == "ws://127.0.0.1:8081/vmachines/u/screen"
    tls = ApiSettings(host="::1", tls_cert=Path("c"), tls_key=Path("k"), allowed_hosts=("Worker1",))
    assert console_url(tls, "u") == "wss://[::1]:8081/vmachines/u/screen"
    assert console_url(ApiSettings(url="https://w1.example/"), "u") == "wss://w1.example/vmachines/u/screen"
    assert origins(tls) == {"https://worker1:8081"}
    assert "http://[::1]:8081" in origins(ApiSettings())
    assert origins(ApiSettings(origins=("https://Console.example",))) == {"https://console.example"}


def test_origins_are_as_browsers_write_them():
    """They omit the scheme's own port. A proxy in front of the API has its own name and port."""
    pair = {"tls_cert": Path("c"), "tls_key": Path("k"), "allowed_hosts": ("w1.example", "::1")}
    assert origins(ApiSettings(port=443, **pair)) == {"https://w1.example", "https://[::1]"}
    assert origins(ApiSettings(port=80, **pair)) == {"https://w1.example:80", "https://[::1]:80"}
    assert origins(ApiSettings(port=80, allowed_hosts=("w1.example",))) == {"http://w1.example"}
    proxied = ApiSettings(url="https://W1.example/", allowed_hosts=("127.0.0.1",))
    assert origins(proxied) == {"https://w1.example", "http://127.0.0.1:8081"}
    assert origins(ApiSettings(origins=("https://console.example:443/",))) == {"https://console.example"}
