"""The scenarios: each folder has a script of faults and its expected log. `--regenerate` rewrites the logs."""

import itertools
import shutil
import tempfile
import uuid
from pathlib import Path

import pytest

from master_service.core import logging
from master_service.core.settings import Settings
from master_service.db.engine import Database
from tests.functional.master.conftest import migrated
from tests.scenarios import scenario, virtual_time

NOTIFIER_LOOKS_S = 5.0
"""Not each second: most of a scenario's seconds are hours in which nothing is to be brought."""
FOLDERS = sorted(script.parent for script in Path(__file__).parent.glob("*/script"))


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    path = tmp_path_factory.mktemp("database") / "empty.db"
    migrated(f"sqlite:///{path}")
    return path


@pytest.fixture
def memory():
    """A folder in memory: the test deletes it, so no write has to reach a disk."""
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def run(monkeypatch, tmp_path, memory, empty):
    """Run a script with every random choice fixed."""
    logging.configure("error")
    virtual_time.install(monkeypatch)
    monkeypatch.setattr(Database, "migrate", nothing)  # the copied database is up to date
    monkeypatch.setattr("master_service.services.notifier._LOOK_S", NOTIFIER_LOOKS_S)
    monkeypatch.setattr("master_service.reconciler.event_listener.random.uniform", lambda _low, high: high)
    (tmp_path / "admin.token").touch(mode=0o600)
    (tmp_path / "admin.token").write_text("a secret")

    times = itertools.count()

    def run_once(script):
        numbers = itertools.count(1)
        monkeypatch.setattr("master_service.services.vms.uuidlib.uuid4", lambda: uuid.UUID(int=next(numbers)))
        database = memory / f"master{next(times)}.db"
        shutil.copy(empty, database)
        settings = Settings(
            database_url=f"sqlite:///{database}",
            admin_token_file=tmp_path / "admin.token",
        )
        virtual_time.LOCKED.clear()
        log = scenario.run(script, settings)
        assert virtual_time.LOCKED == []
        return log

    return run_once


async def nothing(_database):
    pass


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_scenario(request, run, folder):
    found = run((folder / "script").read_text())
    expected = folder / "log.expect"
    if request.config.getoption("--regenerate"):
        expected.write_text(found)
    assert found.splitlines() == expected.read_text().splitlines()


def test_script_run_twice_has_one_log(run):
    script = (Path(__file__).parent / "refusing_worker_with_many_vms" / "script").read_text()
    assert run(script) == run(script)


def test_every_word_is_spoken_somewhere():
    """A word that no script uses is not tested, and does not belong here."""
    spoken = {words[0] for folder in FOLDERS for _, words in scenario.parsed((folder / "script").read_text())}
    known = {name.removeprefix("do_").replace("_", "-") for name in dir(scenario.Scenario) if name.startswith("do_")}
    assert spoken == known
