"""Regression: a disc stayed in the drive for ever if another one, or none, was requested while it was inserted."""

from pathlib import Path

import pytest

from tests.lib.support import eventually, helpers_alive, sha256, virsh
from worker_service.helper import launcher
from worker_service.state.context import Superseded
from worker_service.state.lifecycle import Step, next_step
from worker_service.steps import registry


def test_last_change_wins(site, bootchain, monkeypatch):
    disc = site.images / "ipxe.iso"
    disc.write_bytes(Path("/usr/lib/ipxe/ipxe.iso").read_bytes())
    site.start("twice", bootchain("twice.raw", folder=site.images, variant="spin"))
    site.wait("twice", "running")
    worker = site.worker
    eventually(lambda: not helpers_alive(site.settings, worker.store.find(name="twice").uuid))
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)  # the steps are done here

    def record():
        return worker.store.find(name="twice")

    def pending():
        return next_step(record(), worker.domain(record()))

    driver = worker.hypervisor("kvm")
    change = driver.change_cd

    def change_and_ask_for_none(uuid, path):
        change(uuid, path)
        assert site.call("modify", name="twice", cd_image="")["success"]

    assert site.call("modify", name="twice", cd_image=f"file://{disc}")["success"]
    with monkeypatch.context() as patch:
        patch.setattr(driver, "change_cd", change_and_ask_for_none)
        with pytest.raises(Superseded):
            registry.change_cd(worker, record())
    assert sha256(disc) in virsh("domblklist", "twice")
    assert pending() is Step.CHANGE_CD
    registry.change_cd(worker, record())
    assert sha256(disc) not in virsh("domblklist", "twice")
    assert pending() is None
    monkeypatch.undo()
    site.call("destroy", name="twice")
