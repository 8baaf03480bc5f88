"""One real stack for all integration tests: Salt master, minion, salt-api, worker API, master service, libvirt."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.console import progress
from devstack.layout import REPO, Layout, Ports
from devstack.stack import Stack
from tests.lib.support import end_stack


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    """The running stack. After failed tests its logs stay, in the clone's `var/tests`."""
    # Not pytest's own tmp_path: QEMU, another user, has to pass through, and unix sockets need a short path.
    var = Path(tempfile.mkdtemp(prefix="saltern-test-", dir="/var/tmp"))
    var.chmod(0o755)
    layout = Layout(
        var=var,
        ports=Ports.free(),
        minion=f"worker-{var.name.removeprefix('saltern-test-')}",
        worker_settings={"tick_s": 1.0, "retry_delay_s": 0.5},
        master_settings={"poll_interval_s": 5},
        salt_master_settings={"unique_jid": True},
    )
    stack = Stack(layout)
    try:
        stack.start()
        yield stack
    finally:
        end_stack(stack)
        if request.session.testsfailed:
            kept = REPO / "var/tests" / var.name
            shutil.copytree(var / "log", kept)
            progress(f"the logs of all parts are in {kept}")
        shutil.rmtree(var)
        shutil.rmtree(layout.data_root, ignore_errors=True)
