"""A host without worker_service: Salt gives the reason why there is no `vmachines`, and everything else works."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

REPO = Path(__file__).parents[4]
REASON = "saltern's worker_service cannot be imported: No module named 'worker_service'"


@pytest.fixture(scope="module")
def salt_call(tmp_path_factory):
    """salt-call by a Python that has every package of the virtual environment but ours: `-S` reads no .pth file."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "minion").write_text(
        f"id: bare\nroot_dir: {folder}\nmodule_dirs: [{REPO}/states]\nfile_client: local\nlog_file: salt.log\n"
        f"enable_gpu_grains: False\nenable_fqdns_grains: False\nfile_roots: {{base: [{folder}/sls]}}\n"
    )
    (folder / "sls").mkdir()
    (folder / "sls/wanted.sls").write_text("web01:\n  vmachines.absent: []\n")
    script = str(Path(sys.executable).with_name("salt-call"))
    environment = {"PATH": os.defpath, "PYTHONPATH": sysconfig.get_path("purelib")}

    def call(*words):
        argv = [sys.executable, "-S", script, "--local", "-c", str(folder), "--retcode-passthrough", *words]
        return subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, check=False)

    return call


def test_function_says_the_reason(salt_call):
    done = salt_call("vmachines.version")
    assert done.returncode != 0
    assert REASON in done.stdout + done.stderr
    assert "pip install 'saltern[worker]'" in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_state_says_the_reason(salt_call):
    done = salt_call("state.apply", "wanted")
    assert done.returncode != 0
    assert REASON in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_rest_of_salt_works(salt_call):
    """The SLS that make a worker of this host run before the package is there."""
    done = salt_call("grains.get", "vmachines")
    assert (done.returncode, done.stdout.split()) == (0, ["local:"])


def test_engine_says_the_reason():
    """As the minion loads it: `start` is missing, and the loader knows why."""
    code = (
        "import salt.config, salt.loader\n"
        "opts = salt.config.minion_config(None)\n"
        f"opts['module_dirs'] = ['{REPO}/states']\n"
        "engines = salt.loader.engines(opts, {}, {}, {})\n"
        "assert 'vmachines_watcher.start' not in engines\n"
        "print(engines.missing_fun_string('vmachines_watcher.start'))\n"
    )
    environment = {"PATH": os.defpath, "PYTHONPATH": sysconfig.get_path("purelib")}
    argv = [sys.executable, "-S", "-c", code]
    done = subprocess.run(argv, env=environment, cwd="/", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert REASON in done.stdout
