"""One minion for each process, which applies the SLS, and the pillar of a host whose folders are the test's own."""

from pathlib import Path

import pytest
import yaml

from devstack.layout import PYTHON

REPO = Path(__file__).parents[4]
EXAMPLE = REPO / "salt/pillar.example"


def configure(folder, **settings):
    """Configuration of a minion that has nothing but the file root `states/`."""
    folder.mkdir()
    common = {
        "id": "w1",
        "root_dir": str(folder),
        "file_client": "local",
        "file_roots": {"base": [str(REPO / "states")]},
        "enable_gpu_grains": False,
        "enable_fqdns_grains": False,
        "log_file": "salt.log",
    }
    (folder / "minion").write_text(yaml.safe_dump({**common, **settings}))


@pytest.fixture(scope="session")
def salt_folder(tmp_path_factory):
    """Where the minion of this process has its cache."""
    return tmp_path_factory.mktemp("states") / "minion"


@pytest.fixture(scope="session")
def salt_call(salt_folder):
    """Call a function of Salt in this process, which bears one minion only: a second one would share its settings."""
    # Not at the top: Salt leaves an importer behind that pytest cannot collect further files with.
    import salt.client
    import salt.config

    configure(salt_folder)
    return salt.client.Caller(mopts=salt.config.minion_config(str(salt_folder / "minion"))).cmd


@pytest.fixture(scope="session")
def apply(salt_call):
    """Apply an SLS; the `ret` of each state."""

    def call(sls, pillar, *, test=False):
        reply = salt_call("state.apply", sls, pillar={"saltern": pillar}, test=test)
        assert isinstance(reply, dict), reply
        return {f"{ret['__id__']}: {name.split('_|-')[0]}": ret for name, ret in reply.items()}

    return call


def redirected(root):
    """The example's pillar, with folders below `root` in the place of the host's `/etc`, `/opt` and `/var`."""
    pillar = yaml.safe_load(EXAMPLE.read_text())["saltern"]
    paths = {"venv": str(PYTHON.parents[1]), **{name: str(root / name) for name in ("etc", "salt", "units")}}
    pillar["worker"]["paths"] = paths | {"grub": str(root / "grub")}
    pillar["worker"]["settings"]["data_root"] = str(root / "data")
    pillar["master"]["paths"] = {**paths, "state": str(root / "state")}
    pillar["master"]["user"] = pillar["master"]["gate_user"] = "root"
    return pillar


@pytest.fixture
def host(tmp_path):
    """Pillar of a host of the test's own."""
    return redirected(tmp_path)
