"""One real stack for all integration tests: Salt master, minion, salt-api, facade, master service, libvirt.

It has its own folder, ports and minion id, so it runs beside a live `make run`. Only libvirt is shared with it.
"""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack.console import tell
from devstack.layout import Layout, Ports
from devstack.stack import Stack
from tests.support import end_stack


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest, libvirt_turn: None) -> Iterator[Stack]:
    """The running stack. After failed tests its folder with all logs stays, and is named."""
    # Not pytest's own tmp_path: QEMU, another user, has to pass through, and unix sockets need a short path.
    var = Path(tempfile.mkdtemp(prefix="saltern-test-", dir="/var/tmp"))
    var.chmod(0o755)
    layout = Layout(
        var=var,
        ports=Ports.free(),
        minion=f"worker-{var.name.removeprefix('saltern-test-')}",
        worker_settings={"tick_s": 1.0, "retry_delay_s": 0.5},
        master_settings={"poll_interval_s": 5},
    )
    stack = Stack(layout)
    try:
        stack.start()
        yield stack
    finally:
        end_stack(stack)
        if request.session.testsfailed:
            tell(f"kept for a look: {var}")
        else:
            shutil.rmtree(var)
            shutil.rmtree(layout.data_root, ignore_errors=True)
