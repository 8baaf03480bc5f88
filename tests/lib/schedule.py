"""Markers, groups and order of tests: a group runs in one process, and long tests start first."""

from typing import Final

import pytest
from xdist.scheduler import LoadScopeScheduling

NEEDS: Final = {
    "libvirt": {"libvirt", "machine", "stack", "bench", "on_xen"},
    "salt": {"stack", "modules", "worker_api"},
    "postgresql": {"postgresql"},
    "browser": {"browser"},
}
"""Marker of a need -> the fixtures that bring it."""

SCENARIOS: Final = "tests/scenarios/"
SHARED: Final = "tests/integration/"
"""Its tests use one Salt master with all that belongs to it, so they run in one process."""

ORDER: Final = (
    "tests/hypervisors/test_xen.py",
    SHARED,
    "tests/functional/worker/",
    "tests/hypervisors/",
    "tests/regressions/",
    "tests/functional/",
    SCENARIOS,
    "tests/unit/",
)
"""Folders in the order in which their tests start. A long test that starts last would delay the end."""

WITH_A_STACK_OF_THEIR_OWN: Final = ("test_acceleration.py", "test_guests.py", "test_host_faults.py")
"""Files in `SHARED` that run in any process."""


def mark(item: pytest.Item) -> None:
    """Give a test the markers of its needs. Raises UsageError where it would start a Salt master once more."""
    fixtures = set(getattr(item, "fixturenames", ()))
    for need, brought_by in NEEDS.items():
        if fixtures & brought_by or (need == "postgresql" and item.name.endswith("[postgresql]")):
            item.add_marker(need)
    if "stack" in fixtures and group(item.nodeid) != SHARED:
        raise pytest.UsageError(f"{item.nodeid} uses the fixture `stack`: its file belongs into {SHARED}")


def group(nodeid: str) -> str:
    """Return the group of a test: its file, `SHARED`, or for a scenario the test itself."""
    file = nodeid.partition("::")[0]
    if file.startswith(SCENARIOS):
        return nodeid
    return SHARED if file.startswith(SHARED) and not file.endswith(WITH_A_STACK_OF_THEIR_OWN) else file


def rank(nodeid: str) -> int:
    """Return the place of a test's folder in `ORDER`. Sorting is stable: a file keeps its own order."""
    return next((number for number, folder in enumerate(ORDER) if nodeid.startswith(folder)), 0)


class Scheduling(LoadScopeScheduling):
    """Hands out whole groups, in the order of the tests. pytest-xdist's own groups need another pytest than ours."""

    def __init__(self, config: pytest.Config, log: object) -> None:
        """Take the tests as they come."""
        super().__init__(config, log)
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        return group(nodeid)
