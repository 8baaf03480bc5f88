"""Regression: a helper that died after naming a conflict copy, before recording it, made a second copy."""

from pathlib import Path

import pytest

from devstack.guests import read_counter
from tests.lib.faults import faults_until_met, was_met


def test_conflict_copy_exists_once(fresh_site, bootchain):
    site = fresh_site
    with pytest.MonkeyPatch.context() as patch:
        faults_until_met(patch, site, lambda _: "save.renamed=kill")
        uuid = site.start("clash", bootchain("clash.raw", folder=site.images, variant="key"))["uuid"]
        site.wait("clash", "running")
        site.saved_file("clash").write_text("somebody else's work")
        site.end("clash")
        reply = site.wait("clash", "halted")
        assert was_met(site, uuid, "save.renamed=kill")
    (copy,) = site.saved.glob("clash.conflict-*.qcow2")
    assert Path(reply["disks"]["hda"]["saved_to"].removeprefix("file://")) == copy
    assert read_counter(copy, "qcow2") == 1
    assert site.saved_file("clash").read_text() == "somebody else's work"
    assert site.leftovers() == set()
