"""The suite for Xen: a dom0 in emulation runs it once, and each test there has one of its name here.

And one that only a host of its own allows: its power is cut.
"""

import ast
import shutil
import tempfile
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from devstack.hosts import xen_host
from devstack.hosts.suite import build_talking_demo, command, python

pytestmark = pytest.mark.xen
FOLDER = Path(__file__).parent
LAST_LINES = 60
LIMIT_S = 1500


def names():
    """Return the names of the tests that run in dom0, by their files."""
    found = []
    for path in sorted(FOLDER.glob("test_*.py")):
        if path != Path(__file__):
            functions = [node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)]
            found += [f"{path.stem}::{name}" for name in functions if name.startswith("test_")]
    return found


@pytest.fixture(scope="module")
def on_xen():
    """The failure of each test that ran in dom0, empty if it passed, and the end of the output."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-xen-", dir="/var/tmp"))
    demo, results = folder / "demo.qcow2", folder / "results.xml"
    build_talking_demo(demo)
    try:
        with xen_host(folder / "host", processors=1) as host:
            host.put(demo, "/var/tmp/demo.qcow2")
            given = ("--demo", "/var/tmp/demo.qcow2", "--junit-xml", "/var/tmp/results.xml", "--tb", "short")
            done = host.run(command("xen", given), check=False, timeout_s=LIMIT_S)
            host.get("/var/tmp/results.xml", results)
        yield outcomes(results), "\n".join([*done.stdout.splitlines()[-LAST_LINES:], done.stderr])
    finally:
        shutil.rmtree(folder)


def outcomes(results):
    """Return the failure of each test, by file and name."""
    found = {}
    for case in ET.parse(results).getroot().iter("testcase"):
        name = f"{case.get('classname').rpartition('.')[2]}::{case.get('name').partition('[')[0]}"
        problems = [each for each in case if each.tag in ("failure", "error", "skipped")]
        found[name] = "\n".join(each.text or each.get("message") for each in problems)
    return found


@pytest.mark.parametrize("name", names())
def test_hypervisor_xen(on_xen, name):
    found, end = on_xen
    assert name in found, end
    assert not found[name], f"{found[name]}\n{end}"


def test_dom0_that_loses_power_keeps_the_disk():
    """A real one, with all that a boot of Xen brings back and all that it does not."""
    folder = Path(tempfile.mkdtemp(prefix="saltern-xen-", dir="/var/tmp"))
    try:
        with xen_host(folder / "host") as host:
            host.run(python("tests.hypervisors.power_cut", "before"))
            host.reboot()
            host.run(python("tests.hypervisors.power_cut", "after"))
    finally:
        shutil.rmtree(folder)
