"""Regression: the worker API needed a file `minion`, but a host made by our SLS has only `minion.d`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.functional.worker.serving import write_minion
from tests.lib.support import Site
from worker_service.api.salt_loader import load

_LOAD = """
import sys
from pathlib import Path
from worker_service.api.salt_loader import load
print(load(Path(sys.argv[1]))["vmachines.version"]()["success"])
"""


def test_minion_that_is_configured_in_its_folder_alone(tmp_path):
    config = write_minion(Site(tmp_path, libvirt_uri="test:///default"))
    folder = config.parent / "minion.d"
    folder.mkdir()
    config.rename(folder / "site.conf")
    # A process of its own: Salt has one loader in each.
    done = subprocess.run([sys.executable, "-c", _LOAD, str(config)], check=False, capture_output=True, text=True)
    assert done.stdout == "True\n", done.stderr


def test_no_configuration_at_all_is_named():
    with pytest.raises(FileNotFoundError, match=r"api\.minion_config"):
        load(Path("/nowhere/minion"))
