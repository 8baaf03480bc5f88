"""Tests that run in an emulated host and report here, one by one, as if they had run here.

The host starts with the first of them, pytest runs once in it for all, and the host stops behind the last.
"""

import json
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from devstack.console import Trouble
from devstack.hosts import Machine, xen_host
from devstack.layout import PYTHON, REPO
from tests.lib import remote_reports
from tests.lib.remote_reports import MARK

_PLUGINS: Final = ("xdist.plugin", "_hypothesis_pytestplugin", "anyio.pytest_plugin", "tests.lib.remote_reports")
"""Alone these are loaded: each takes an emulated second."""
_LAST_LINES: Final = 60
_HOSTS: Final = {"xen": xen_host}
"""hypervisor -> a host with it, as a context manager that takes the folder of its files."""


class Remote:
    """One host, and the tests that run in it."""

    def __init__(self, config: pytest.Config, nodeids: Sequence[str], *options: str) -> None:
        """Take the tests, in the order in which they will run here too. `options` are for pytest in the host."""
        self._config = config
        self._nodeids = list(nodeids)
        self._options = options
        self._lines: Iterator[str] | None = None
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self.ended = ""

    def start(self, host: Machine, prepare: Callable[[Machine], Sequence[str]] = lambda _: ()) -> None:
        """Start pytest in a host that runs. `prepare` may change the host, and returns more options of pytest."""
        options = [*self._options, *prepare(host)]
        plugins = [word for name in _PLUGINS for word in ("-p", name)]
        pytest_words = [str(PYTHON), "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider"]
        settings = [f"PYTHONPATH={REPO}", "PYTEST_DISABLE_PLUGIN_AUTOLOAD=1", "PYTHONDONTWRITEBYTECODE=1"]
        argv = ["env", "-C", str(REPO), *settings, *pytest_words, *plugins, *options, *self._nodeids]
        self._lines = host.lines(argv)

    def run(self, item: pytest.Item) -> None:
        """Report one test, once it has ended in the host."""
        item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
        for report in self._reports(item):
            item.ihook.pytest_runtest_logreport(report=report)
        item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)

    def _reports(self, item: pytest.Item) -> Iterator[pytest.TestReport]:
        found = False
        for data in self._data():
            if data == item.nodeid:
                if found:
                    return
            elif isinstance(data, dict) and data["nodeid"] == item.nodeid:
                found = True
                yield self._config.hook.pytest_report_from_serializable(config=self._config, data=data)
        said = "\n".join(self._said)
        problem = f"pytest in the host ended before this test did. {self.ended}\n{said}"
        yield pytest.TestReport(item.nodeid, item.location, {}, "failed", problem, "call")

    def _data(self) -> Iterator[dict | str]:
        try:
            for line in self._lines or ():
                said, mark, data = line.partition(MARK)  # dots of progress may be before it
                if mark:
                    yield json.loads(data)
                else:
                    self._said.append(said)
        except Trouble as err:
            self.ended = str(err)


def protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a test of `tests/hypervisors` in a host, if its hypervisor needs one: the hook `pytest_runtest_protocol`."""
    kind = _host_of(item)
    if kind is None:
        return None
    stash = item.config.stash
    if _RUNNING not in stash:
        stash[_RUNNING] = _start(item.session, kind)
    held, far = stash[_RUNNING]
    far.run(item)
    if nextitem is None or _host_of(nextitem) != kind:
        del stash[_RUNNING]
        held.close()
    return True


_RUNNING: Final = pytest.StashKey[tuple[ExitStack, Remote]]()


def _host_of(item: pytest.Item) -> str | None:
    """Return the hypervisor for which a test needs a host, or None: also in such a host."""
    if item.config.pluginmanager.has_plugin(remote_reports.__name__):
        return None
    kind = (
        item.callspec.params.get("bench") if isinstance(item, pytest.Function) and hasattr(item, "callspec") else None
    )
    return kind if kind in _HOSTS else None


def _start(session: pytest.Session, kind: str) -> tuple[ExitStack, Remote]:
    held, nodeids = ExitStack(), [item.nodeid for item in session.items if _host_of(item) == kind]
    session.config.add_cleanup(held.close)  # after an interrupt
    far = Remote(session.config, nodeids, "--sandbox", "none", "--hypervisor", kind)
    folder = held.enter_context(tempfile.TemporaryDirectory(prefix="saltern-host-"))
    try:
        far.start(held.enter_context(_HOSTS[kind](Path(folder))))
    except Trouble as err:
        far.ended = str(err)
    return held, far
