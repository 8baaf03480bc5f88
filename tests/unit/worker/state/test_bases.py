"""Images and bases that the cache must keep for VMs."""

from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from worker_service.contract import Spec
from worker_service.state.bases import base_holders, bases_needed
from worker_service.state.record import Disk, Phase, Record

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def record(phase, *disks, **changes):
    spec = Spec(name="a", hda_image="https://host/a", hdb_image="blank:1G")
    named = dict(zip(("hda", "hdb"), disks, strict=False))
    fields = {"generation": 1, "phase": phase, "phase_since": NOW, "created_at": NOW, "disks": named}
    return Record(uuid="u", spec=spec, **(fields | changes))


@pytest.mark.parametrize("phase", [Phase.DONE, Phase.START_FAILED, Phase.DESTROYING])
def test_unsaved_overlay_of_an_ended_vm_needs_its_base(phase):
    disks = Disk(base="a"), Disk(base="b", flat_sha256="f")
    assert bases_needed([record(phase, *disks, unsaved=True)]).digests == {"a"}
    assert bases_needed([record(phase, *disks)]).digests == set()


def test_live_vm_needs_its_images_and_its_disc():
    needed = bases_needed([record(Phase.UP, Disk(base="a"), cd="c"), record(Phase.FETCHING)])
    assert needed.digests == {"a", "c"}
    assert {str(uri) for uri in needed.uris} == {str(needed.uris[0])}


def test_destroyed_vm_with_unsaved_disks_holds_its_base():
    live, destroyed = record(Phase.UP), record(Phase.DESTROYING, Disk(base="a"))
    store = SimpleNamespace(all=lambda: iter([live]), destroyed_unsaved=lambda: iter([(None, destroyed)]))
    assert bases_needed(base_holders(store)).digests == {"a"}
