"""The worker's page /docs in a real browser."""

import pytest

from tests.lib.api_docs import authorize, chromium, execute, expect, opened, operation, without_swagger_ui


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


def test_docs_page_lists_the_verbs_with_their_parameters(browser, worker_api, tmp_path):
    with opened(browser, worker_api) as page:
        start = operation(page, "post", "/vmachines/start")
        start.locator(".opblock-summary-control").click()
        expect(start.locator(".opblock-body")).to_contain_text("hda_image")
        expect(page.locator(".opblock-post")).not_to_have_count(0)
        expect(operation(page, "get", "/vmachines/screenshot")).to_have_count(1)
        expect(page).to_have_title("Saltern worker")
        page.screenshot(path=tmp_path / "docs.png")


def test_docs_page_authorized_call_answers(browser, worker_api):
    with opened(browser, worker_api) as page:
        authorize(page, "reader")
        listed = operation(page, "get", "/vmachines/list")
        expect(execute(listed)).to_have_text("200")
        expect(listed.locator(".live-responses-table")).to_contain_text('"vmachines": []')


def test_docs_page_without_swagger_ui_says_so(browser, worker_api):
    expect(without_swagger_ui(browser, worker_api)).to_contain_text("`make setup` fetches it")
