"""A console through the master: a ticket through the real Salt, RFB relayed from a real QEMU by the worker API."""

import json
import struct
import subprocess
import time
from contextlib import ExitStack

import pytest
from playwright.sync_api import expect, sync_playwright
from websockets.exceptions import ConnectionClosed, InvalidStatus

from devstack import http
from devstack.guests import build_demo
from devstack.guests.build import CACHE
from devstack.layout import REPO
from tests.functional.worker.api.test_console_proxy import ECHO, cells, picture
from tests.functional.worker.rfb_client import Viewer
from tests.lib.console import Console
from tests.lib.support import PATIENCE_S, eventually

VMS = "/api/v1/vmachines"
expect.set_options(timeout=PATIENCE_S * 1000)
LONG = 600
"""Seconds. On an idle machine the guest is up after three; emulated on a very busy one it takes minutes."""
LIT = """(() => {
    const canvas = document.querySelector("#view canvas");
    const values = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    return values.filter((value, index) => index % 4 < 3 && value).length;
})()"""
"""The number of red, green and blue values of the console that are not 0."""


@pytest.fixture(scope="module")
def echo(stack):
    image = stack.layout.images / "echo.raw"
    image.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    return image


@pytest.fixture
def uma(stack):
    """A user; asks the master as she does."""
    login = {"user": "uma", "password": "correct horse battery"}
    made = stack.api("POST", "/api/v1/users", {"name": login["user"], "password": login["password"]})
    assert made.ok, made.body
    token = http.call("POST", f"{stack.layout.master_url}/api/v1/tokens", body=login).body["token"]

    def ask(method, path, body=None):
        headers = {"Authorization": f"Bearer {token}"}
        return http.call(method, stack.layout.master_url + path, body=body, headers=headers, timeout_s=60)

    yield ask
    assert stack.api("DELETE", "/api/v1/users/uma").ok


def create(ask, name, image, **more):
    body = {"name": name, "hda_image": f"file://{image}", "mem_size": 32, **more}
    reply = ask("POST", VMS, body)
    assert reply.status == 201, reply.body


def wait(ask, name, status):
    deadline = time.monotonic() + LONG
    while (observed := ask("GET", f"{VMS}/{name}").body)["status"] != status:
        assert time.monotonic() < deadline, observed
        time.sleep(0.2)
    return observed


def ticket(ask, name, **body):
    reply = ask("POST", f"{VMS}/{name}/console", body)
    assert reply.ok, reply.body
    return reply.body


def view(ask, name, **body):
    made = ticket(ask, name, **body)
    return Viewer(made["url"], made["ticket"]).hello()


def test_console_through_the_master(stack, echo):
    create(stack.api, "console", echo)
    wait(stack.api, "console", "running")
    made = ticket(stack.api, "console")
    assert made["page"].startswith(f"{stack.layout.master_url}/console/")
    with pytest.raises(InvalidStatus) as caught:
        Viewer(made["url"], made["ticket"], origin="http://evil.example")
    assert caught.value.response.status_code == 403
    with Viewer(made["url"], made["ticket"], origin=stack.layout.master_url) as viewer:
        assert viewer.hello().look()
        with pytest.raises(InvalidStatus) as caught:  # good once
            Viewer(made["url"], made["ticket"])
        assert json.loads(caught.value.response.body)["code"] == "forbidden"
        assert stack.api("DELETE", f"{VMS}/console").ok
        with pytest.raises(ConnectionClosed):
            viewer.look_on()
    lines = stack.api("GET", "/api/v1/audit").body
    verbs = {line["verb"] for line in lines}
    assert {"console", "console.open"} <= verbs
    assert made["ticket"] not in json.dumps(lines)


def test_several_viewers_and_view_only_through_the_master(stack, echo):
    create(stack.api, "many", echo)
    uuid = wait(stack.api, "many", "running")["uuid"]

    def observed():
        return picture(stack.layout.worker_url, uuid, stack.layout.worker_token.read_text().strip())

    eventually(lambda: observed()[16:24] == struct.pack(">II", 720, 400))
    with ExitStack() as held:
        one, *lookers = [held.enter_context(view(stack.api, "many", view_only=number > 0)) for number in range(4)]
        for looker in lookers:
            looker.press("A")
            assert looker.look() == 720 * 400 * 4
        # Had one of those keys arrived, there would be two letters.
        one.press("b")
        eventually(lambda: cells(observed())[0])
        assert cells(observed()) == [True, False]
        lookers[0].close()
        for each in (one, *lookers[1:]):
            assert each.look() == 720 * 400 * 4
    assert stack.api("DELETE", f"{VMS}/many").ok


def test_console_while_installing_needs_an_administrator(stack, echo):
    create(stack.api, "soft-console", echo, soft_list=["nginx"])
    wait(stack.api, "soft-console", "installing")
    with view(stack.api, "soft-console", view_only=True) as viewer:
        assert viewer.look()
    assert stack.api("DELETE", f"{VMS}/soft-console").ok


def test_owner_sees_progress_while_installing(stack, uma):
    demo = stack.layout.images / "console-demo.qcow2"
    build_demo(demo, CACHE)
    create(uma, "own", demo, mem_size=160, soft_list=["hello", "held"])
    uuid = wait(uma, "own", "installing")["uuid"]
    heard, deadline = False, time.monotonic() + LONG
    while not (reply := uma("POST", f"{VMS}/own/console", {})).ok:
        assert time.monotonic() < deadline, reply.body
        assert (reply.status, reply.body["code"]) == (403, "forbidden"), reply.body
        if "software is being installed: Installing 2 of 2: held." in reply.body["detail"] and not heard:
            heard = True
            Console("own", stack.layout.data_root / "vms" / uuid / "console.log").go_on(within_s=LONG)
        time.sleep(0.2)
    assert heard
    wait(uma, "own", "running")
    with Viewer(reply.body["url"], reply.body["ticket"]) as own, view(stack.api, "own") as administrators:
        assert own.hello().look()
        # Her view ends with her right to it, and no other view does.
        assert stack.api("PATCH", "/api/v1/users/uma", {"disabled": True}).ok
        with pytest.raises(ConnectionClosed) as caught:
            own.look_on()
        assert (caught.value.rcvd.code, "any more" in caught.value.rcvd.reason) == (1008, True)
        assert administrators.look()
    assert stack.api("DELETE", f"{VMS}/own").ok
    wait_gone(stack, "own")


def wait_gone(stack, name):
    eventually(lambda: stack.api("GET", f"{VMS}/{name}").status == 404)


def test_command_line_prints_the_page(stack, echo):
    create(stack.api, "cli-console", echo)
    wait(stack.api, "cli-console", "running")
    argv = [REPO / ".venv/bin/saltern", "--url", stack.layout.master_url, "--token-file", stack.layout.admin_token]
    done = subprocess.run([*argv, "console-url", "cli-console"], check=True, capture_output=True, text=True)
    page, _, secret = done.stdout.strip().partition("#")
    assert page.startswith(stack.layout.master_url)
    uuid = page.rpartition("/")[2]
    url = f"{stack.layout.master_url.replace('http', 'ws')}/api/v1/console/{uuid}/screen"
    with Viewer(url, secret) as viewer:
        assert viewer.hello().look()
    assert stack.api("DELETE", f"{VMS}/cli-console").ok


def test_page_in_a_browser(stack, echo, tmp_path):
    create(stack.api, "page", echo)
    wait(stack.api, "page", "running")
    made = ticket(stack.api, "page")
    with sync_playwright() as playwright:
        # Root has no user namespace of its own to put the sandbox in; the page is ours.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800})
        complaints = []
        page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
        page.goto(made["page"])
        state = page.locator("#state")
        expect(state).to_have_text("Connected.", timeout=PATIENCE_S * 1000)
        assert made["ticket"] not in page.url
        expect(page.locator("#name")).to_have_text("QEMU (page)")
        expect(page.get_by_role("button", name="Ctrl+Alt+Del")).to_be_visible()
        page.wait_for_function(f"() => {LIT} === 0", timeout=PATIENCE_S * 1000)
        page.keyboard.type("Saltern")
        # Some 25 lit values a letter; the guest draws one after the other.
        page.wait_for_function(f"() => {LIT} > 100", timeout=PATIENCE_S * 1000)
        page.screenshot(path=tmp_path / "connected.png")
        assert complaints == []
        assert stack.api("DELETE", f"{VMS}/page").ok
        expect(state).to_contain_text("The VM's console is gone: the VM is off", timeout=PATIENCE_S * 1000)
        expect(page.get_by_role("button", name="Ctrl+Alt+Del")).to_be_hidden()
        page.screenshot(path=tmp_path / "gone.png")
        page.goto("about:blank")
        page.goto(made["page"])
        expect(state).to_contain_text("the ticket was used", timeout=PATIENCE_S * 1000)
        browser.close()
