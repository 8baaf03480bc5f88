"""The pages of both services have only relative addresses: a proxy may have a service below a path of its own."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
PAGES = [
    path
    for folder in ("master_service/api/static", "worker_service/api/static", "web_assets")
    for path in sorted((REPO / folder).iterdir())
    if path.suffix in {".html", ".js", ".css"}
]


def test_pages_of_both_services_are_found():
    assert {"console.html", "console.js", "index.html", "worker.js", "api_docs.js"} <= {path.name for path in PAGES}


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(REPO)))
def test_page_has_no_absolute_address(path):
    assert re.findall(r"""["'`(]/[\w$].*|location\.origin""", path.read_text()) == []
