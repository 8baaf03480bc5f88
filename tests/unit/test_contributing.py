"""CONTRIBUTING.md: each path exists, and each name of code that stands beside a path is in that file."""

import re
from pathlib import Path

import pytest

from worker_service.contract import SCHEME_ENTRY_POINTS

REPO = Path(__file__).parents[2]
PAGE = (REPO / "CONTRIBUTING.md").read_text()
RECIPES = (
    "A new image scheme",
    "A new verb of the worker",
    "A new status field",
    "A new hypervisor driver",
    "A new page",
)
FOLDERS = (
    "changelog/", "devstack/", "docs/", "master_service/", "modules/", "salt/", "states/", "tests/", "web_assets/",
    "worker_service/",
)  # fmt: skip


def is_path(span):
    return "<" not in span and (span.startswith(FOLDERS) or span.endswith((".py", ".md", ".toml")))


PATHS = sorted({span for span in re.findall(r"`([^`\n]+)`", PAGE) if is_path(span) and " " not in span})
NAMED = sorted(
    {
        (name.rpartition(".")[2], path)
        for names, path in re.findall(r"((?:`\w+(?:\.\w+)?`(?:,| and| or)?\s+)+)(?:of|in)\s+`([^`\s]+\.py)`", PAGE)
        for name in re.findall(r"`([\w.]+)`", names)
    }
)
"""(name, file) for sentences such as "its row in `VERBS` of `worker_service/…`"."""


@pytest.mark.parametrize("path", PATHS)
def test_path_exists(path):
    assert list(REPO.glob(path)), path


@pytest.mark.parametrize(("name", "path"), NAMED)
def test_file_has_the_name_that_stands_beside_it(name, path):
    assert re.search(rf"\b{name}\b", (REPO / path).read_text()), path


def test_every_recipe_is_there_and_names_files():
    parts = {part.partition("\n")[0]: part for part in PAGE.split("\n### ")[1:]}
    assert tuple(parts) == RECIPES
    assert [title for title, part in parts.items() if not any(path in part for path in PATHS)] == []


def test_entry_point_of_a_package_is_the_one_that_is_read():
    assert f'[project.entry-points."{SCHEME_ENTRY_POINTS}"]' in PAGE
