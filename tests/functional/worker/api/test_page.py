"""The worker's page in a real browser over a real VM: its list, its console, and who may type."""

import json

import pytest
from playwright.sync_api import expect, sync_playwright

from tests.functional.worker.api.test_console_proxy import ECHO
from tests.lib.support import PATIENCE_S, Site

WAIT_MS = PATIENCE_S * 1000
expect.set_options(timeout=WAIT_MS)


@pytest.fixture(scope="module")
def vm(site: Site):
    image = site.images / "echo.raw"
    image.write_bytes(ECHO.ljust(510, b"\0") + b"\x55\xaa" + bytes((1 << 20) - 512))
    reply = site.start("echo", image, hda_save_to=None)
    site.wait("echo", "running")
    return reply["uuid"]


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        # Root has no user namespace of its own to put the sandbox in; the pages are ours.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, worker_api, vm):
    page = browser.new_page(viewport={"width": 1280, "height": 800})
    page.set_default_timeout(WAIT_MS)
    complaints = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("request", lambda request: complaints.append(request.url) if not _ours(request.url, worker_api) else None)
    page.goto(worker_api)
    page.get_by_label("Token of this worker").fill("all")
    page.get_by_role("button", name="Show its VMs").click()
    yield page
    page.close()
    assert complaints == []


def _ours(url, worker_api):
    return url.startswith((worker_api, worker_api.replace("http", "ws"), "data:", "blob:"))


def drawn(page):
    """The picture of the console in the page."""
    return page.locator("#console-view canvas").evaluate("canvas => canvas.toDataURL()")


def until_drawn(page, before):
    for _ in range(600):
        if (now := drawn(page)) != before:
            return now
        page.wait_for_timeout(100)
    raise AssertionError("the console did not change")


def test_console_in_the_page(page, tmp_path):
    page.get_by_role("button", name="Console of echo").click()
    state = page.locator("#console-state")
    expect(state).to_have_text("Connected.", timeout=WAIT_MS)
    before = drawn(page)
    page.keyboard.type("Saltern shows a screen")
    after = until_drawn(page, before)
    page.screenshot(path=tmp_path / "screen.png")
    # Looking only: keys stay in the browser.
    page.get_by_label("only look").check()
    expect(state).to_have_text("Connected; keys and pointer stay here.", timeout=WAIT_MS)
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#console")).to_be_hidden()
    assert after


def test_page_shows_log_while_installing(page, site, vm, tmp_path):
    image, tail = site.images / "echo.raw", "E: Unable to locate package <b>nothing</b>"
    uuid = site.start("soft", image, hda_save_to=None, soft_list="nginx,redis")["uuid"]
    site.wait("soft", "installing")
    page.get_by_role("button", name="Install log of soft").click()
    state, log = page.locator("#console-state"), site.folder / "data/vms" / uuid / "agent.log"
    expect(state).to_contain_text("the agent in it has not reported", timeout=WAIT_MS)
    with log.open("a") as out:
        out.write(
            '{"event": "installed", "name": "nginx", "version": "1.22"}\n{"event": "installing", "name": "redis"}\n'
        )
    expect(state).to_have_text("Installing 2 of 2: redis.", timeout=WAIT_MS)
    expect(page.locator("#console-log li")).to_have_text(["nginx · 1.22 · installed", "redis · installing"])
    expect(page.locator("#console-tail")).to_have_text("nginx is installed, version 1.22.\nInstalling redis.")
    expect(page.locator("#console-view")).to_be_hidden()
    page.screenshot(path=tmp_path / "log.png")
    # An operator may look at the console meanwhile, and back at the log.
    page.get_by_role("button", name="Show the console").click()
    expect(state).to_have_text("Connected.", timeout=WAIT_MS)
    before = drawn(page)
    page.keyboard.type("x")
    until_drawn(page, before)
    page.screenshot(path=tmp_path / "installing.png")
    page.get_by_role("button", name="Show the log").click()
    expect(state).to_have_text("Installing 2 of 2: redis.", timeout=WAIT_MS)
    expect(page.locator("#console-view")).to_be_hidden()
    # The console replaces the log after the installation.
    with log.open("a") as out:
        out.write('{"event": "installed", "name": "redis"}\n{"event": "done"}\n')
    site.wait("soft", "running")
    expect(state).to_have_text("Connected.", timeout=WAIT_MS)
    expect(page.locator("#console-view")).to_be_visible()
    expect(page.locator("#console-show")).to_be_hidden()
    page.get_by_role("button", name="Close").click()
    # The guest's text is shown as text, without markup, in the list too.
    uuid = site.start("fails", image, hda_save_to=None, soft_list="nothing")["uuid"]
    site.wait("fails", "installing")
    page.get_by_role("button", name="Install log of fails").click()
    with log.parent.with_name(uuid).joinpath("agent.log").open("a") as out:
        out.write(json.dumps({"event": "failed", "name": "nothing", "tail": tail}) + "\n")
    expect(page.locator("#console-tail")).to_contain_text(
        f"nothing could not be installed:\n    {tail}", timeout=WAIT_MS
    )
    # The console of an administrator stays open after the installation.
    page.get_by_role("button", name="Close").click()
    uuid = site.start("shown-on", image, hda_save_to=None, soft_list="nginx")["uuid"]
    site.wait("shown-on", "installing")
    page.get_by_role("button", name="Install log of shown-on").click()
    page.get_by_role("button", name="Show the console").click()
    expect(state).to_have_text("Connected.", timeout=WAIT_MS)
    page.locator("#console-view canvas").evaluate("canvas => { canvas.dataset.same = 'yes'; }")
    with log.parent.with_name(uuid).joinpath("agent.log").open("a") as out:
        out.write('{"event": "installed", "name": "nginx"}\n{"event": "done"}\n')
    site.wait("shown-on", "running")
    expect(page.locator("#console-show")).to_be_hidden(timeout=WAIT_MS)
    expect(page.locator("#console-view canvas[data-same]")).to_be_visible()


def test_page_shows_only_log_to_readers(page, site, vm):
    image = site.images / "echo.raw"
    site.start("shut", image, hda_save_to=None, soft_list="nginx")
    site.wait("shut", "installing")
    page.get_by_role("button", name="Forget token").click()
    page.get_by_label("Token of this worker").fill("screens")
    page.get_by_role("button", name="Show its VMs").click()
    page.get_by_role("button", name="Install log of shut").click()
    expect(page.locator("#console-log")).to_be_visible()
    expect(page.locator("#console-state")).to_contain_text("has not reported", timeout=WAIT_MS)
    page.wait_for_timeout(3000)  # it looks every two seconds
    expect(page.locator("#console-show")).to_be_hidden()
