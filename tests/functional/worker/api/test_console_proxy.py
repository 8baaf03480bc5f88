"""Consoles with real QEMU: VNC on a unix socket, through the websocket of the worker API, with tickets."""

import json
import logging
import pwd
import shutil
import socket
import stat
import struct
import subprocess
import tempfile
import zlib
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus

from http_bounds.protocol import BoundedProtocol
from tests.functional.worker.rfb_client import Viewer
from tests.functional.worker.serving import get, post, serving
from tests.lib.support import Site, eventually, virsh
from worker_service.console.tickets import digest, make

ECHO = bytes.fromhex("b80300cd10 b401b90020cd10 30e4cd16b40ecd10ebf6")
"""A boot sector: text mode without a cursor; each key is shown."""


@pytest.fixture(scope="module")
def echo(site):
    image = site.images / "echo.raw"
    image.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image


@pytest.fixture(scope="module")
def vm(site, echo):
    """The uuid of a VM that shows what is typed."""
    reply = site.start("echo", echo, hda_save_to=None)
    site.wait("echo", "running")
    return reply["uuid"]


def ask(url, token="all", **parameters):
    return post(f"{url}/vmachines/screen", json=parameters, headers={"Authorization": f"Bearer {token}"})


def ticket(url, vm, token="all", **parameters):
    answer = ask(url, token, uuid=vm, **parameters)
    assert answer.status_code == 200, answer.text
    return answer.json()["ticket"]


def place(url, vm):
    return f"{url.replace('http', 'ws')}/vmachines/{vm}/screen"


def view(url, vm, token="all", *, origin=None, shared=True, **parameters):
    return Viewer(place(url, vm), ticket(url, vm, token, **parameters), origin=origin, shared=shared)


def refused(url, vm, secret, status=403, **options):
    with pytest.raises(InvalidStatus) as caught:
        Viewer(place(url, vm), secret, **options)
    answer = caught.value.response
    body = json.loads(answer.body)
    assert (answer.status_code, body["success"]) == (status, False), body
    return body["message"]


def picture(url, vm, token="all"):
    answer = get(f"{url}/vmachines/screenshot", params={"uuid": vm}, headers={"Authorization": f"Bearer {token}"})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "image/png"
    return answer.content


def cells(png):
    """Say which of the first two letters on the console are not blank."""
    width, height = struct.unpack(">II", png[16:24])
    assert (width, height) == (720, 400)
    rows = zlib.decompressobj().decompress(png[png.index(b"IDAT") + 4 :])
    pixels = [rows[1 + y * (3 * width + 1) :][: 3 * width] for y in range(16)]
    return [any(any(row[27 * at : 27 * (at + 1)]) for row in pixels) for at in (0, 1)]


def test_socket_below_data_root_is_reachable_by_qemu_and_root(site, vm):
    folder = site.folder / "data/vms" / vm / "screen"
    assert stat.S_ISSOCK((folder / "vnc").stat().st_mode)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert pwd.getpwuid(folder.stat().st_uid).pw_name == "libvirt-qemu"
    code = f"import socket; socket.socket(socket.AF_UNIX).connect({str(folder / 'vnc')!r})"
    unprivileged = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "/usr/bin/python3", "-c", code]
    done = subprocess.run(unprivileged, check=False, capture_output=True, text=True)
    assert "PermissionError" in done.stderr


def test_vnc_listens_on_no_tcp_port(vm):
    listening = subprocess.run(["ss", "-ltnH"], check=True, capture_output=True, text=True).stdout
    ports = {int(line.split()[3].rpartition(":")[2]) for line in listening.splitlines()}
    assert not ports & set(range(5900, 6100))


def test_status_says_how_to_reach_it(site, vm):
    assert site.call("status", uuid=vm)["vnc"].endswith(f"/vmachines/{vm}/screen")
    assert vm in virsh("list", "--uuid")


def test_viewer_sees_the_screen_and_types(worker_api, site, vm):
    eventually(lambda: picture(worker_api, vm)[16:24] == struct.pack(">II", 720, 400))
    with view(worker_api, vm, "screens", view_only=True) as looker, view(worker_api, vm) as one:
        assert looker.hello().size == (720, 400)
        looker.press("A")
        assert looker.look() == 720 * 400 * 4
        assert one.hello().look() == 720 * 400 * 4
        # Had the first key arrived, there would be two letters.
        one.press("b")
        eventually(lambda: cells(picture(worker_api, vm))[0])
        assert cells(picture(worker_api, vm)) == [True, False]
        assert looker.look()


def test_several_see_it_at_once_and_none_ends_anothers_view(worker_api, vm):
    with ExitStack() as held:
        viewers = [held.enter_context(view(worker_api, vm, shared=number % 2 == 0)).hello() for number in range(5)]
        for each in viewers:
            assert each.look()


def test_ticket_is_good_once_and_for_its_vm_only(worker_api, vm):
    secret = ticket(worker_api, vm)
    with Viewer(place(worker_api, vm), secret) as viewer:
        viewer.hello()
        assert "once" in refused(worker_api, vm, secret)
    for wrong in ("", "guess", "." * 43):
        refused(worker_api, vm, wrong)
    other = "00000000-0000-4000-8000-000000000000"
    secret = ticket(worker_api, vm)
    refused(worker_api, other, secret)
    refused(worker_api, vm, secret)


def test_ticket_may_be_made_by_its_user(worker_api, site, vm, modules):
    """As through Salt: only the digest is an argument, and nothing secret is in the return."""
    secret, key = make()
    reply = modules["vmachines.screen"](uuid=vm, ticket_sha256=key, user="ann", view_only=True)
    assert reply["success"], reply
    assert secret not in json.dumps(reply)
    with Viewer(place(worker_api, vm), secret) as viewer:
        assert viewer.hello().look()
    assert "ticket_sha256" in modules["vmachines.screen"](uuid=vm)["message"]
    assert "ticket_sha256" in modules["vmachines.screen"](uuid=vm, ticket_sha256=secret)["message"]
    answer = ask(worker_api, uuid=vm, ticket_sha256=digest("mine"))
    assert "ticket" not in answer.json()


def test_ticket_needs_the_right_token(worker_api, vm):
    assert ask(worker_api, "reader", uuid=vm).status_code == 403
    assert ask(worker_api, "guess", uuid=vm).status_code == 401
    assert ask(worker_api, uuid=vm, admin=True).status_code == 400
    assert ask(worker_api, uuid=vm, user="root").status_code == 400
    assert ask(worker_api, name="nobody").status_code == 404
    by_get = get(f"{worker_api}/vmachines/screen", params={"uuid": vm}, headers={"Authorization": "Bearer all"})
    assert by_get.status_code == 405
    looked = get(f"{worker_api}/vmachines/screenshot", params={"uuid": vm}, headers={"Authorization": "Bearer reader"})
    assert looked.status_code == 403


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "", "https://{own}", "http://{own}.evil.example", "http://127.0.0.1:1"]
)
def test_foreign_page_opens_no_console_and_uses_no_ticket(worker_api, vm, origin):
    own = worker_api.removeprefix("http://")
    secret = ticket(worker_api, vm)
    assert "origin" in refused(worker_api, vm, secret, origin=origin.format(own=own))
    with Viewer(place(worker_api, vm), secret, origin=worker_api) as viewer:
        viewer.hello()


def test_frame_too_large_and_text_end_the_view(worker_api, vm):
    for frame in ("text", b"x" * (10 << 20)):
        with view(worker_api, vm) as viewer:
            viewer.hello()
            with suppress(ConnectionClosed):  # it may be cut off before its end
                viewer.socket.send(frame)
            with pytest.raises(ConnectionClosed) as caught:
                viewer.take(1)
            # A sender that is not done when it is cut off may not hear why.
            assert (caught.value.rcvd or caught.value).code in (1003, 1006, 1009)


def test_no_more_screens_than_are_set(site, modules, vm):
    with serving(site, modules, max_consoles=1) as url, view(url, vm) as viewer:
        viewer.hello()
        refused(url, vm, ticket(url, vm), status=429)


def test_view_outlasts_the_time_for_a_request_to_arrive(site, modules, vm, monkeypatch):
    """Each view was cut off 20 s after it began: the clock of the request that opened it ran on."""
    clocks, start = [], BoundedProtocol._start_clock
    monkeypatch.setattr(BoundedProtocol, "_start_clock", lambda one: clocks.append(one) or start(one))
    with serving(site, modules) as url, view(url, vm) as viewer:
        viewer.hello()
        running = [one for one in clocks if one._deadline]
        for one in running:  # as if the time were over now
            one.loop.call_soon_threadsafe(one._too_slow)
        assert len(clocks) > len(running)
        assert viewer.look()


def test_both_ends_close_whichever_went(worker_api, site, echo):
    uuid = site.start("ends", echo, hda_save_to=None)["uuid"]
    site.wait("ends", "running")
    before = len(list(Path("/proc/self/fd").iterdir()))
    viewers = [view(worker_api, uuid).hello() for _ in range(3)]
    viewers[0].close()
    viewers[1].socket.socket.shutdown(socket.SHUT_RDWR)  # no word of farewell
    assert viewers[2].look()
    assert site.call("destroy", uuid=uuid)["success"]
    with pytest.raises(ConnectionClosed):
        viewers[2].look_on()
    assert "The VM's console is gone: the VM is off" in viewers[2].socket.close_reason
    for each in viewers:
        each.close()
    eventually(lambda: len(list(Path("/proc/self/fd").iterdir())) <= before)


def test_data_root_too_long_for_the_name_of_a_socket(worker_api, echo, libvirt):
    folder = Path(tempfile.mkdtemp(prefix="saltern-" + "long-" * 12, dir="/var/tmp"))
    folder.chmod(0o755)
    far = Site(folder)
    try:
        (far.images / "echo.raw").write_bytes(echo.read_bytes())
        uuid = far.start("far", far.images / "echo.raw", hda_save_to=None)["uuid"]
        far.wait("far", "running")
        place = far.worker.hypervisor("kvm").console(uuid).socket
        assert folder not in place.parents
        with socket.socket(socket.AF_UNIX) as qemu:
            qemu.connect(str(place))
            assert qemu.recv(12) == b"RFB 003.008\n"
        assert far.call("destroy", uuid=uuid)["success"]
    finally:
        far.close()
        shutil.rmtree(folder)


def test_vm_that_is_off_has_no_screen(worker_api, site, echo):
    uuid = site.start("asleep", echo, hda_save_to=None)["uuid"]
    site.wait("asleep", "running")
    site.call("destroy", uuid=uuid)
    assert ask(worker_api, uuid=uuid).status_code == 404


def test_view_and_ticket_end_with_their_token(site, modules, vm, tmp_path):
    def token(name, scopes):
        return f"{digest(name)} {scopes} {name}\n"

    tokens = tmp_path / "tokens"
    both = token("all", "console,operate"), token("screens", "console")
    tokens.write_text("".join(both))
    with serving(site, modules, tokens_file=tokens) as url, view(url, vm, "screens") as other:
        other.hello()
        for left in ("", token("all", "operate,read"), token("all", "console")):
            tokens.write_text("".join(both))
            unused = ticket(url, vm)
            with view(url, vm) as viewer:
                viewer.hello()
                tokens.write_text(both[1] + left)
                with pytest.raises(ConnectionClosed):
                    viewer.take(1)
                assert (viewer.socket.close_code, "token" in viewer.socket.close_reason) == (1008, True)
            assert "No valid ticket" in refused(url, vm, unused)
        assert other.look()


def test_views_are_written_down_without_their_tickets(worker_api, vm, caplog):
    caplog.set_level(logging.INFO)
    secret = ticket(worker_api, vm)
    with Viewer(place(worker_api, vm), secret) as viewer:
        viewer.hello()
    eventually(lambda: "screen.close" in caplog.text)
    lines = [json.loads(each.message.removeprefix("audit ")) for each in caplog.records if "audit" in each.message]
    assert [(one["verb"], one["vm"], one["by"]) for one in lines] == [
        ("screen", vm, "me"),
        ("screen.open", vm, "me"),
        ("screen.close", vm, "me"),
    ]
    assert secret not in caplog.text
