"""Every `CLI Example` of the execution module, run in the order of one life with Salt's loader and a real libvirt.

The examples are read as a shell and then `salt` would read them. The test replaces /srv/images and /srv/saved by its
folders, and the uuid by that of the VM.
"""

import os
import re
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from devstack.guests import build_bootchain

REPO = Path(__file__).parents[4]
UUID = "6d6c7f0e-0000-4000-8000-000000000001"
"""Of the VM in the example of `apply`."""
ORDER = (
    "version", "capabilities", "plan", "cache_prefetch", "start", "status", "agent_log", "screen", "modify", "suspend",
    "resume", "apply", "list", "shutdown", "save_retry", "cache", "cache_unpin", "cache_pin", "cache_clean", "destroy",
)  # fmt: skip
"""One life, so that each finds what it needs."""


@pytest.fixture(scope="module")
def salt_folder(site):
    """A minion's configuration for the test module's worker."""
    folder = site.folder / "salt"
    folder.mkdir()
    settings = {
        "id": "worker1",
        "root_dir": str(folder),
        "module_dirs": [str(REPO / "states")],
        "saltern": {"settings": str(site.settings)},
        "file_client": "local",
        "log_file": "salt.log",
        "enable_gpu_grains": False,
        "enable_fqdns_grains": False,
    }
    (folder / "minion").write_text(yaml.safe_dump(settings))
    return folder


@pytest.fixture(scope="module")
def caller(salt_folder):
    """Salt's functions in this process: they read the words of a command line as `salt` does."""
    # Not at the top: Salt leaves an importer behind that pytest cannot collect further files with.
    import salt.client
    import salt.config

    return salt.client.Caller(mopts=salt.config.minion_config(str(salt_folder / "minion")))


def run(caller, words):
    """Run a command line as `salt` reads it: `k=v` is a keyword, and JSON a list."""
    import salt.minion
    import salt.utils.args

    function = caller.sminion.functions[words[0]]
    arguments, keywords = salt.minion.load_args_and_kwargs(function, salt.utils.args.parse_input(words[1:]))
    return function(*arguments, **keywords)


@pytest.fixture(scope="module")
def examples(caller):
    """The text of each function's example."""
    found = {}
    for name, text in caller.cmd("sys.doc", "vmachines").items():
        command = re.search(r"^ +salt worker1 (.*)$", text or "", re.MULTILINE)
        assert command, f"{name} has no CLI Example"
        found[name.removeprefix("vmachines.")] = command[1]
    return found


def shell_words(text):
    """The words of a command line as a shell makes them."""
    argv = ["bash", "-euc", f"printf '%s\\0' {text}"]
    done = subprocess.run(argv, env={"PATH": os.defpath, "TICKET": "drawn"}, check=True, capture_output=True, text=True)
    return done.stdout.split("\0")[:-1]


@contextmanager
def watching(site):
    """The watcher looks meanwhile."""
    done = threading.Event()

    def look():
        while not done.wait(0.1):
            site.watcher.look()

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_every_function_has_an_example_of_itself(examples):
    assert sorted(examples) == sorted(ORDER)
    assert [text.split()[0] for text in examples.values()] == [f"vmachines.{name}" for name in examples]


def test_every_example_works(site, caller, examples):
    """A boot sector hears no button: the guest that is to be shut down is another one, which ends at a key."""
    uuid = UUID

    def example(name):
        text = examples[name].replace("/srv/images", str(site.images)).replace("/srv/saved", str(site.saved))
        reply = run(caller, shell_words(text.replace(UUID, uuid)))
        assert reply["success"] is True, (name, reply)
        return reply

    build_bootchain(site.images / "debian.qcow2", variant="spin")
    for name in ORDER:
        if name == "shutdown":
            site.call("destroy", name="web01")
            build_bootchain(site.images / "debian.qcow2", variant="key")
            example("start")
            example("modify")
            site.wait("web01", "running")
            site.saved.rename(site.folder / "away")  # its save target is missing, so the save can be retried
            site.end("web01")
        if name == "save_retry":
            site.wait("web01", "failed to save")
            (site.folder / "away").rename(site.saved)
        with watching(site):  # `shutdown` waits for what the watcher has done
            reply = example(name)
        if name == "cache_prefetch":
            site.until(lambda: site.call("cache"), lambda cache: cache["images"])
        if name == "start":
            uuid = reply["uuid"]
            site.wait("web01", "running")
        if name == "save_retry":
            site.wait("web01", "halted")
    assert (site.saved / "web01.qcow2").exists()


@pytest.mark.parametrize(("words", "code"), [(["vmachines.version"], 0), (["vmachines.status", "name=nobody"], 1)])
def test_failure_is_an_exit_code_too(salt_folder, words, code):
    argv = [
        str(Path(sys.executable).with_name("salt-call")),
        "--local",
        "-c",
        str(salt_folder),
        "--retcode-passthrough",
    ]
    done = subprocess.run([*argv, *words], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
