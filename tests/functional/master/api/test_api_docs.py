"""The master's pages in a real browser, behind a proxy that has the master below a path of its own."""

import shutil
import threading

import pytest
import uvicorn

from master_service.api import create_app
from master_service.core.settings import Settings
from tests.functional.master.conftest import LIMIT_S, TOKEN
from tests.functional.master.enrolled import enroll
from tests.functional.master.fakes import FakeSalt, FakeWorker
from tests.lib.api_docs import authorize, chromium, execute, expect, opened, operation, without_swagger_ui
from tests.lib.support import eventually
from tests.unit.master.builders import UUID

PREFIX = "/vms/saltern"


def below(prefix, app):
    """What a proxy does that removes the prefix. Nothing of the master is above it."""

    async def served(scope, receive, send):
        if scope["type"] != "lifespan":
            path = scope["path"].removeprefix(prefix) if scope["path"].startswith(f"{prefix}/") else "/outside"
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await app(scope, receive, send)

    return served


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def url(tmp_path_factory, empty_sqlite):
    folder = tmp_path_factory.mktemp("docs")
    shutil.copy(empty_sqlite, folder / "master.db")
    (folder / "admin.token").touch(mode=0o600)
    (folder / "admin.token").write_text(TOKEN)
    configured = Settings(
        database_url=f"sqlite:///{folder}/master.db",
        admin_token_file=folder / "admin.token",
    )
    salt = FakeSalt(FakeWorker("w1"))
    enroll(configured, salt)
    app = create_app(configured, salt)
    limits = {"timeout_keep_alive": int(LIMIT_S), "timeout_graceful_shutdown": 1}
    server = uvicorn.Server(uvicorn.Config(below(PREFIX, app), port=0, log_config=None, **limits))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}{PREFIX}"
    server.should_exit = True
    thread.join(30)


def test_docs_page_lists_the_operations(browser, url, tmp_path):
    with opened(browser, url) as page:
        expect(operation(page, "post", "/api/v1/vmachines/{id_or_name}/suspend")).to_have_count(1)
        create = operation(page, "post", "/api/v1/vmachines")
        create.locator(".opblock-summary-control").click()
        expect(create.locator(".opblock-body")).to_contain_text("hda_image")
        expect(page).to_have_title("Saltern master")
        page.screenshot(path=tmp_path / "docs.png")


def test_docs_page_authorized_call_answers(browser, url):
    with opened(browser, url) as page:
        authorize(page, TOKEN)
        worker = operation(page, "get", "/api/v1/workers/{worker_id}")
        expect(execute(worker, worker_id="w1")).to_have_text("200")
        expect(worker.locator(".live-responses-table")).to_contain_text('"id": "w1"')


def test_console_page_finds_all_of_itself(browser, url):
    page, paths, sockets = browser.new_page(), [], []
    page.on("response", lambda answer: paths.append((answer.status, answer.url)))
    page.on("websocket", lambda socket: sockets.append(socket.url))
    page.goto(f"{url}/console/{UUID}#ticket")
    expect(page.locator("#state")).to_contain_text("There is no console")
    assert {status for status, _ in paths} == {200}
    assert {f"{url}/console/static/console.css", f"{url}/console/novnc/core/rfb.js"} <= {path for _, path in paths}
    assert sockets == [f"{url.replace('http', 'ws')}/api/v1/console/{UUID}/screen"]
    assert page.url == f"{url}/console/{UUID}"
    page.close()


def test_docs_page_without_swagger_ui_says_so(browser, url):
    expect(without_swagger_ui(browser, url)).to_contain_text("`make setup` fetches it")
