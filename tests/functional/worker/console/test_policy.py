"""Access to consoles while software is being installed: who may open one, and when it closes."""

import json

import msgspec
import pytest
from websockets.exceptions import ConnectionClosed

from devstack.guests import build_demo
from devstack.guests.build import CACHE
from tests.functional.worker.api.test_console_proxy import ECHO, ask, picture, place, refused, view
from tests.functional.worker.rfb_client import Viewer
from tests.functional.worker.serving import get
from tests.lib.console import Console
from tests.lib.support import virsh
from worker_service.console.tickets import make
from worker_service.operations.screen import tickets

LONG = 300
"""Seconds. On an idle machine the guest is up after three; emulated on a busy one it takes a minute."""
USER, ADMIN = "screens", "all"


@pytest.fixture(scope="module")
def echo(site):
    image = site.images / "echo.raw"
    image.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image


def report(site, uuid, *events):
    """Write a report as the agent in the guest does. This guest has no agent, so it keeps the test's state."""
    with (site.folder / "data/vms" / uuid / "agent.log").open("ab") as log:
        log.writelines(json.dumps(event).encode() + b"\n" for event in events)


def issued_before(site, uuid):
    """Make a user's ticket that was allowed at another time."""
    secret, key = make()
    tickets(site.worker).issue(key, vm=uuid, user="viewer", admin=False, view_only=False)
    return secret


def shut(worker_api, site, uuid, words):
    """A user gets no ticket, cannot use one, and sees no picture."""
    answer = ask(worker_api, USER, uuid=uuid)
    assert (answer.status_code, answer.json()["code"]) == (403, "policy")
    text = refused(worker_api, uuid, issued_before(site, uuid))
    parameters, bearer = {"uuid": uuid}, {"Authorization": f"Bearer {USER}"}
    shot = get(f"{worker_api}/vmachines/screenshot", params=parameters, headers=bearer)
    assert shot.status_code == 403
    for message in (answer.json()["message"], text, shot.json()["message"]):
        assert "while its software is being installed" in message
        assert words in message


def test_from_the_boot_to_the_end_of_the_installation(worker_api, site, echo):
    uuid = site.start("soft", echo, hda_save_to=None, soft_list="nginx,redis")["uuid"]
    site.wait("soft", "installing", within_s=LONG)
    shut(worker_api, site, uuid, "has not reported")
    with view(worker_api, uuid, ADMIN) as admin:
        admin.hello()
        report(site, uuid, {"event": "up"}, {"event": "installed", "name": "nginx", "version": "1"})
        report(site, uuid, {"event": "installing", "name": "redis"})
        shut(worker_api, site, uuid, "Installing 2 of 2: redis.")
        assert picture(worker_api, uuid, ADMIN)
        # A suspended VM is not `installing`, but its console shows the same.
        assert site.call("suspend", uuid=uuid)["success"]
        assert site.call("status", uuid=uuid)["status"] == "suspended"
        shut(worker_api, site, uuid, "paused")
        assert admin.look()
        assert site.call("resume", uuid=uuid)["success"]
        assert site.call("status", uuid=uuid)["status"] == "installing"
        report(site, uuid, {"event": "installed", "name": "redis"}, {"event": "done"})
        site.wait("soft", "running", within_s=LONG)
        with view(worker_api, uuid, USER) as user:
            assert user.hello().look()
        assert admin.look()
    site.call("destroy", uuid=uuid)


def test_views_and_tickets_of_a_life_that_is_over(worker_api, site, echo):
    """A VM that ran goes off and starts a new life with software: old tickets and views do not open its console."""
    uuid = site.start("again", echo, hda_save_to=None)["uuid"]
    site.wait("again", "running")
    with view(worker_api, uuid, USER) as user:
        assert user.hello().look()
        site.call("shutdown", uuid=uuid)
        virsh("destroy", "again")
        with pytest.raises(ConnectionClosed):
            user.look_on()
    site.wait("again", "halted")
    assert "no console now" in refused(worker_api, uuid, issued_before(site, uuid), status=409)
    again = site.start("again", echo, uuid=uuid, generation=9, hda_save_to=None, soft_list="nginx")
    assert (again["success"], again.get("uuid")) == (True, uuid), again
    site.wait("again", "installing", within_s=LONG)
    shut(worker_api, site, uuid, "has not reported")
    site.call("destroy", uuid=uuid)


def test_view_ends_at_once_where_the_gate_shuts(worker_api, site, echo):
    """This never happens in a correct worker: the record of a running VM says again that it installs."""
    uuid = site.start("shuts", echo, hda_save_to=None, soft_list="nginx")["uuid"]
    site.wait("shuts", "installing", within_s=LONG)
    report(site, uuid, {"event": "installed", "name": "nginx"}, {"event": "done"})
    site.wait("shuts", "running", within_s=LONG)
    with view(worker_api, uuid, USER) as user, view(worker_api, uuid, ADMIN) as admin:
        user.hello()
        admin.hello()
        (site.folder / "data/vms" / uuid / "agent.log").write_bytes(b"")
        site.worker.store.update(uuid, lambda record: msgspec.structs.replace(record, ready_at=None))
        with pytest.raises(ConnectionClosed) as caught:
            user.look_on()
        assert (caught.value.rcvd.code, "software" in caught.value.rcvd.reason) == (1008, True)
        assert admin.look()
    site.call("destroy", uuid=uuid)


def test_console_of_a_real_installing_guest_is_closed(worker_api, site):
    """The demo guest with its real agent."""
    build_demo(site.images / "demo.qcow2", CACHE)
    uuid = site.start("demo", site.images / "demo.qcow2", hda_save_to=None, mem_size=160, soft_list="held")["uuid"]
    site.wait("demo", "installing", within_s=LONG)
    assert ask(worker_api, USER, uuid=uuid).status_code == 403
    with view(worker_api, uuid, ADMIN) as admin:
        admin.hello()
        Console("demo", site.folder / "data/vms" / uuid / "console.log").go_on(within_s=LONG)
        site.wait("demo", "running", within_s=LONG)
        assert admin.look()
    with Viewer(place(worker_api, uuid), ask(worker_api, USER, uuid=uuid).json()["ticket"]) as user:
        assert user.hello().look()
    site.call("destroy", uuid=uuid)
