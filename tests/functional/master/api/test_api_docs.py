"""The master's page /docs in a real browser."""

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
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, **limits))
    thread = threading.Thread(target=server.run)
    thread.start()
    eventually(lambda: server.started)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
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


def test_docs_page_without_swagger_ui_says_so(browser, url):
    expect(without_swagger_ui(browser, url)).to_contain_text("`make setup` fetches it")
