"""Every step acts as the owner in the record, also if a settings file or a record has changed since the admission."""

from types import SimpleNamespace

import msgspec
import pytest

from tests.unit.worker.steps.test_manifest import A, record
from worker_service.core.errors import Refused
from worker_service.state.context import WorkerContext
from worker_service.state.record import Disk, Phase
from worker_service.steps.running import change_cd
from worker_service.steps.save import discard, save
from worker_service.steps.start import fetch

BOTH = b"#!/bin/sh\n".ljust(510) + b"\x55\xaa" + bytes(3584)
"""A script for cloud-init, and a raw disk with a boot sector."""
CD = bytes(16 * 2048) + b"\x01CD001\x01" + bytes(2041) + b"\xffCD001\x01" + bytes(2041)


@pytest.fixture
def worker(tmp_path):
    (tmp_path / "worker.toml").write_text(
        f'data_root = "{tmp_path}/data"\n[images]\nread_roots = ["{tmp_path}/{{owner}}"]\n'
        f'write_roots = ["{tmp_path}/{{owner}}"]\nreserve_mib = 0\n'
    )
    for owner in ("ann", "bob"):
        (tmp_path / owner).mkdir()
        (tmp_path / owner / "x").write_bytes(BOTH)
    made = WorkerContext(tmp_path / "worker.toml")
    made.hypervisor = lambda _: SimpleNamespace(change_cd=lambda *_: None)
    return made


def uri(worker, owner):
    return f"file://{worker.settings.data_root.parent}/{owner}/x"


def stored(worker, phase, **spec):
    made = record(image="blank:1M", save_to="")
    made = msgspec.structs.replace(made, phase=phase, spec=msgspec.structs.replace(made.spec, **spec))
    worker.store.create(made)
    return made


@pytest.mark.parametrize(
    ("step", "phase", "field"),
    [
        (fetch, Phase.FETCHING, "hda_image"),
        (fetch, Phase.FETCHING, "hdb_image"),
        (fetch, Phase.FETCHING, "cd_image"),
        (fetch, Phase.FETCHING, "user_data"),
        (fetch, Phase.FETCHING, "hda_save_to"),
        (change_cd, Phase.UP, "cd_image"),
        (save, Phase.SAVING, "hda_save_to"),
        (lambda worker, made: discard(worker, made, "hda"), Phase.SAVING, "hda_save_to"),
    ],
)
@pytest.mark.parametrize("owner", ["bob", ""])
def test_step_refuses_what_is_anothers(worker, tmp_path, step, phase, field, owner):
    made = stored(worker, phase, **{field: uri(worker, "ann")})
    made = worker.store.update(A, lambda r: msgspec.structs.replace(r, owner=owner, disks={"hda": Disk()}))
    with pytest.raises(Refused, match="lies outside the folders"):
        step(worker, made)
    assert sorted(path.name for path in (tmp_path / "ann").iterdir()) == ["x"]


@pytest.mark.parametrize("field", ["hda_image", "cd_image", "user_data", "hda_save_to"])
def test_step_does_what_is_the_owners(worker, tmp_path, field):
    if field == "cd_image":
        (tmp_path / "ann/x").write_bytes(CD)
    stored(worker, Phase.FETCHING, **{field: uri(worker, "ann")})
    fetch(worker, worker.store.read(A))
    assert worker.store.read(A).phase is Phase.BUILDING


def test_wrong_user_data_is_refused_before_any_fetch(worker, tmp_path):
    (tmp_path / "ann/doc").write_text("#cloud-config\n- no mapping\n")
    made = stored(worker, Phase.FETCHING, hda_image=uri(worker, "ann"), user_data=f"file://{tmp_path}/ann/doc")
    with pytest.raises(Refused, match="no YAML mapping"):
        fetch(worker, made)
    assert list((worker.settings.data_root / "images/sha256").iterdir()) == []
