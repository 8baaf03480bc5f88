"""`saltern download` of a disk that a real guest wrote: through the master, the real Salt and the worker's API."""

import hashlib
import os
import subprocess

from devstack.guests import build_bootchain, read_counter
from devstack.layout import REPO
from tests.integration.test_whole_path import body, create, end, wait


def saltern(stack, folder, *words):
    argv = [REPO / ".venv/bin/saltern", "--url", stack.layout.master_url, "--token-file", stack.layout.admin_token]
    options = {"env": {**os.environ, "PYTHONPATH": str(REPO)}, "stdin": subprocess.DEVNULL}
    return subprocess.run([*argv, *words], cwd=folder, capture_output=True, text=True, check=False, **options)


def test_saved_disk_is_downloaded_and_boots_again(stack, tmp_path):
    image = stack.layout.images / "load.raw"
    build_bootchain(image, variant="key")
    create(stack, "load", image)
    wait(stack, "load", "running")
    early = saltern(stack, tmp_path, "download", "load", "-o", "load.qcow2")
    assert (early.returncode, "Shut it down first: saltern shutdown load." in early.stderr) == (1, True), early
    end(stack, "load")
    wait(stack, "load", "halted")
    done = saltern(stack, tmp_path, "download", "load", "-o", "load.qcow2")
    assert done.returncode == 0, done.stderr
    saved = stack.layout.saved / "load.qcow2"
    assert (tmp_path / "load.qcow2").read_bytes() == saved.read_bytes()
    assert hashlib.sha256(saved.read_bytes()).hexdigest() in done.stdout
    assert read_counter(tmp_path / "load.qcow2", "qcow2") == 1
    saved.write_bytes(b"another file")
    changed = saltern(stack, tmp_path, "download", "load", "-o", "other.qcow2")
    assert (changed.returncode, "somebody has replaced it" in changed.stderr) == (1, True), changed
    assert [path.name for path in tmp_path.iterdir()] == ["load.qcow2"]


def test_kept_disk_is_to_be_saved_first(stack, tmp_path):
    image = stack.layout.images / "kept.raw"
    build_bootchain(image, variant="key")
    parameters = body(stack, "kept", image)
    del parameters["hda_save_to"]
    assert stack.api("POST", "/api/v1/vmachines", parameters).status == 201
    wait(stack, "kept", "running")
    end(stack, "kept")
    wait(stack, "kept", "halted")
    refused = saltern(stack, tmp_path, "download", "kept", "-o", "kept.qcow2")
    assert refused.returncode == 1
    assert "is kept on its worker and not saved. Save it first: saltern modify kept --hda-save-to URI" in refused.stderr
