"""The page `/docs` of a service in a real browser: its list, Authorize, "Try it out", and no call to another host."""

from collections.abc import Iterator
from contextlib import contextmanager

from playwright.sync_api import Browser, Locator, Page, expect, sync_playwright

from tests.lib.support import PATIENCE_S

WAIT_MS = PATIENCE_S * 1000
_VIOLATIONS = """
    window.violations = [];
    document.addEventListener("securitypolicyviolation", (event) => {
        window.violations.push(`${event.violatedDirective}: ${event.blockedURI}`);
    });
"""


@contextmanager
def chromium() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # Root has no user namespace of its own to put the sandbox in; the pages are ours.
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        yield browser
        browser.close()


@contextmanager
def opened(browser: Browser, url: str) -> Iterator[Page]:
    """The page. At its end it has broken no policy, called no other host and written no error to the console."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    page.set_default_timeout(WAIT_MS)
    complaints: list[str] = []
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    ours = (f"{url}/", "data:", "blob:")
    page.on("request", lambda request: complaints.append(request.url) if not request.url.startswith(ours) else None)
    page.add_init_script(_VIOLATIONS)
    page.goto(f"{url}/docs")
    yield page
    complaints += page.evaluate("window.violations")
    page.close()
    assert complaints == []


def operation(page: Page, method: str, path: str) -> Locator:
    """One operation, as the page lists it."""
    return page.locator(f".opblock-{method}").filter(has=page.locator(f'[data-path="{path}"]'))


def authorize(page: Page, token: str) -> None:
    page.get_by_role("button", name="Authorize").click()
    dialog = page.locator(".dialog-ux")
    dialog.get_by_label("auth-bearer-value").fill(token)
    dialog.get_by_role("button", name="Apply credentials").click()
    dialog.get_by_role("button", name="Close").last.click()


def execute(found: Locator, **parameters: str) -> Locator:
    """Open an operation, fill its parameters in, execute it; return the cell with the answer's status."""
    found.locator(".opblock-summary-control").click()
    found.get_by_role("button", name="Try it out").click()
    for name, value in parameters.items():
        found.locator(f'tr[data-param-name="{name}"] input').fill(value)
    found.get_by_role("button", name="Execute").click()
    return found.locator(".live-responses-table .response-col_status").last


def without_swagger_ui(browser: Browser, url: str) -> Locator:
    """The page's text where npm could not be fetched."""
    page = browser.new_page()
    page.set_default_timeout(WAIT_MS)
    page.route("**/swagger_ui/**", lambda route: route.fulfill(status=404))
    page.goto(f"{url}/docs")
    return page.locator("main")


__all__ = ["authorize", "chromium", "execute", "expect", "opened", "operation", "without_swagger_ui"]
expect.set_options(timeout=WAIT_MS)
