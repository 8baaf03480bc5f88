"""The user of QEMU that libvirt names must be the one for which the worker keeps disks readable."""

import os

import pytest

from worker_service.core.errors import HypervisorError
from worker_service.core.host import User
from worker_service.core.settings import Settings
from worker_service.hypervisor.kvm import Kvm

QEMU = User(64055, 64055)


def require(monkeypatch, ids, user, uid=0):
    monkeypatch.setattr(os, "geteuid", lambda: uid)
    Kvm(Settings(libvirt_uri="test:///default"), user)._require_user(ids)


@pytest.mark.parametrize(
    ("ids", "user", "uid"),
    [((64055, 107), QEMU, 0), ((0, 0), QEMU, 0), ((0, 0), None, 0), (None, QEMU, 0), ((1000, 1000), None, 1000)],
)
def test_user_that_can_read_is_accepted(monkeypatch, ids, user, uid):
    require(monkeypatch, ids, user, uid)


@pytest.mark.parametrize("user", [QEMU, None])
def test_other_user_is_refused_with_the_setting(monkeypatch, user):
    with pytest.raises(HypervisorError, match=r"as user 36, .*qemu_user") as failed:
        require(monkeypatch, (36, 36), user)
    assert not failed.value.retry
