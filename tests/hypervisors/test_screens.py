"""The screen of a guest on each hypervisor: it shows the guest's picture, takes keys, and closes with the guest."""

import hashlib

import pytest
from websockets.exceptions import ConnectionClosed

from devstack.guests import read_counter
from tests.hypervisors.screens import Screen, screens
from tests.lib.support import eventually
from worker_service.core.errors import SalternError
from worker_service.operations.screen import screenshot


def test_screen_shows_the_guest_and_takes_keys(bench, site, guest):
    """The guest writes its greeting, and ends at a key."""
    can = bench.capabilities(site)
    uuid = site.start("shown", guest("key"))["uuid"]
    reply = site.wait("shown", "running", "failed to start")
    assert (reply["status"], reply["console"]) == ("running", can.console), reply
    bench.until_counted(site, uuid)
    if not can.console:
        digest = hashlib.sha256(b"ticket").hexdigest()
        refused = site.call("screen", uuid=uuid, ticket_sha256=digest)
        assert (refused["code"], "console.log" in refused["message"]) == ("unsupported", True), refused
        assert site.call("destroy", uuid=uuid)["success"]
        return
    if can.screenshot:
        assert screenshot(site.worker, uuid, None, admin=True).startswith(b"\x89PNG\r\n\x1a\n")
    else:
        with pytest.raises(SalternError, match=r"\. .*\.$"):
            screenshot(site.worker, uuid, None, admin=True)
    with screens(site) as url, Screen(url, site, uuid) as screen:
        assert min(screen.size) >= 200
        eventually(lambda: any(screen.picture()))
        screen.press("a")
        with pytest.raises(ConnectionClosed):
            screen.watch()
    assert site.wait("shown", "halted")["halt_cause"] == "guest shut down"
    assert read_counter(site.saved_file("shown"), "qcow2") == 1
    assert site.call("screen", uuid=uuid, ticket_sha256=hashlib.sha256(b"late").hexdigest())["success"] is False
