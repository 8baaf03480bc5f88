"""One real stack for all integration tests: Salt master, minion, salt-api, facade, master service, libvirt.

It has its own folder, ports and minion id, so it runs beside a live `make run`. Only libvirt is shared with it.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from devstack import process
from devstack.console import tell
from devstack.layout import Layout, Ports
from devstack.stack import LIBVIRT_URI, Stack


@pytest.fixture(scope="session")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
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
        stop_helpers(layout)
        remove_domains(layout)
        stack.stop()
        if request.session.testsfailed:
            tell(f"kept for a look: {var}")
        else:
            shutil.rmtree(var)
            shutil.rmtree(layout.data_root, ignore_errors=True)


def stop_helpers(layout: Layout) -> None:
    """End helpers of this stack that still work: they outlive the minion on purpose, and would outlive the tests."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"worker_service.helper" in words and bytes(layout.worker_toml) in words:
            one = process.identify(int(entry.name))
            if one is not None:
                process.end(one, layout.log("helper"), grace_s=0)


def remove_domains(layout: Layout) -> None:
    """Remove the domains whose disks lie in this stack's data root; all others are somebody else's."""
    for uuid in virsh("list", "--all", "--uuid").split():
        if f"{layout.data_root}/" in virsh("dumpxml", uuid):
            virsh("destroy", uuid)
            virsh("undefine", uuid)


def virsh(*words: str) -> str:
    """What virsh prints; errors are no news here."""
    command = ["virsh", "-q", "-c", LIBVIRT_URI, *words]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=60).stdout
