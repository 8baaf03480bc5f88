"""README.md of the tests: each path exists, and each folder of tests mirrors a folder of the source."""

import re
from pathlib import Path

import pytest

REPO = Path(__file__).parents[2]
TESTS = REPO / "tests"
README = (TESTS / "README.md").read_text()
TOP = tuple(sorted(path.name for path in TESTS.iterdir() if path.is_dir() and path.name != "__pycache__"))
SERVICES = {"master": "master_service", "worker": "worker_service"}
OWN_FOLDERS = {"functional/worker/interfaces": "modules", "functional/worker/states": "states"}
"""Folders with another name than their source."""


def paths():
    """Return each path that the page names: in code spans, in links and in commands. It may have a `*`."""
    words = {word.strip("(),.") for span in re.findall(r"`([^`\n]+)`", README) for word in re.split(r"[ =\"]", span)}
    words |= set(re.findall(r"\]\(([^)#]+)\)", README))
    return sorted(
        word.removeprefix("tests/") for word in words if word.endswith((".py", ".sh", ".md")) or is_below(word)
    )


def is_below(word):
    return word.removeprefix("tests/").startswith(tuple(f"{name}/" for name in TOP))


@pytest.mark.parametrize("path", paths())
def test_path_in_readme_exists(path):
    assert [*TESTS.glob(path), *REPO.glob(path)], path


def test_readme_names_every_top_folder():
    assert [name for name in TOP if f"`{name}/" not in README] == []


@pytest.mark.parametrize("kind", ["unit", "functional"])
@pytest.mark.parametrize("part", SERVICES)
def test_folder_of_tests_mirrors_a_folder_of_the_source(kind, part):
    folders = {path.parent.relative_to(TESTS) for path in (TESTS / kind / part).rglob("test_*.py")}
    missing = [
        str(folder)
        for folder in folders
        if str(folder) not in OWN_FOLDERS
        and not (REPO / SERVICES[part] / folder.relative_to(f"{kind}/{part}")).is_dir()
    ]
    assert missing == []
