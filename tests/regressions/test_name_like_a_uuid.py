"""Regression: a VM could have the uuid of another VM as its name, and was then found or changed in its place."""

import pytest

from master_service.policy import validation
from tests.lib.support import Site

OTHER = "11111111-2222-4333-8444-555555555555"
LIKE = [OTHER, OTHER.upper(), OTHER.replace("-", ""), "1111-11112222433384445-55555555555"]
UNLIKE = ["web-11111111-2222-4333-8444-555555555555", OTHER[:-1], "g" * 32, "deadbeef"]


@pytest.mark.parametrize("name", LIKE)
def test_master_and_worker_refuse_it(tmp_path, name):
    with pytest.raises(ValueError, match="like the uuid"):
        validation.validate_name(name)
    site = Site(tmp_path, libvirt_uri="test:///default")
    for verb in ("start", "plan"):
        reply = site.call(verb, name=name, hda_image="blank:1G")
        assert (reply["success"], reply["code"]) == (False, "bad_request"), reply
        assert "like a uuid" in reply["message"]
    assert site.call("list")["vmachines"] == []


@pytest.mark.parametrize("name", UNLIKE)
def test_other_names_are_allowed(tmp_path, name):
    assert validation.validate_name(name) == name
    assert Site(tmp_path, libvirt_uri="test:///default").call("plan", name=name, hda_image="blank:1G")["success"]


def test_old_vm_with_such_a_name_still_works_by_uuid(tmp_path):
    """Its master sends it with its uuid, also to another worker."""
    site = Site(tmp_path, libvirt_uri="test:///default")
    own = "99999999-2222-4333-8444-555555555555"
    given = {"uuid": own, "name": OTHER, "hda_image": "blank:1G", "generation": 1}
    assert site.call("start", **given)["success"]
    assert site.call("status", uuid=own)["name"] == OTHER
    assert site.call("status", uuid=OTHER)["code"] == "not_found"
    again = site.call("start", name=OTHER, hda_image="blank:1G")
    assert (again["success"], again["uuid"]) == (True, own)
    assert site.call("destroy", uuid=own)["success"]
