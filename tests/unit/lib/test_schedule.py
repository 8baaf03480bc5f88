"""Groups and order of tests."""

import re

import pytest

from devstack.layout import REPO
from tests.lib.schedule import NEEDS, ORDER, SHARED, group, rank


@pytest.mark.parametrize(
    ("nodeid", "shares"),
    [
        ("tests/integration/test_console.py::test_a", SHARED),
        ("tests/integration/test_whole_path.py::test_a[x@y]", SHARED),
        ("tests/integration/test_host_faults.py::test_a", "tests/integration/test_host_faults.py"),
        ("tests/scenarios/test_scenarios.py::test_scenario[a]", "tests/scenarios/test_scenarios.py::test_scenario[a]"),
        (
            "tests/unit/worker/state/test_record_store.py::TestA::test_a[a::b]",
            "tests/unit/worker/state/test_record_store.py",
        ),
    ],
)
def test_tests_of_a_file_share_a_group(nodeid, shares):
    assert group(nodeid) == shares


def test_long_tests_begin_first():
    shuffled = [f"{folder}test_a.py::test_a" for folder in reversed(ORDER)]
    assert [nodeid.partition("test_a")[0] for nodeid in sorted(shuffled, key=rank)] == list(ORDER)


def test_every_need_is_a_fixture():
    text = "\n".join(path.read_text() for path in (REPO / "tests").rglob("*.py"))
    fixtures = set(re.findall(r"@pytest\.fixture(?:\(.*\))?\n(?:async )?def (\w+)", text))
    assert {name for names in NEEDS.values() for name in names} - fixtures == set()
