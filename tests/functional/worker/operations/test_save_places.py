"""A place that no disk can be saved to is refused at once, by every verb that names one."""

import pytest

from tests.lib.support import Site

PLACES = {
    "folder": lambda path: path.mkdir(),
    "symbolic link": lambda path: path.symlink_to("/etc/passwd"),
    "name has 230 bytes": lambda path: None,
}


@pytest.mark.parametrize("verb", ["plan", "start"])
@pytest.mark.parametrize("obstacle", PLACES)
def test_impossible_place_is_refused_at_once(tmp_path, verb, obstacle):
    site = Site(tmp_path, libvirt_uri="test:///default")
    path = site.saved / ("a" * 230 if "230" in obstacle else "web.qcow2")
    PLACES[obstacle](path)
    reply = site.call(verb, name="web", mem_size=32, hda_image="blank:1M", hda_save_to=f"file://{path}")
    assert (reply["success"], reply["code"]) == (False, "policy")
    assert obstacle.removeprefix("name ") in reply["message"]
    assert list(site.worker.store.all()) == []


def test_plan_looks_at_a_missing_folder(tmp_path):
    site = Site(tmp_path, libvirt_uri="test:///default")
    reply = site.call("plan", name="web", mem_size=32, hda_image="blank:1M", hda_save_to=f"file://{site.saved}/no/web")
    assert not reply["success"]
    assert "No such file or directory. Check the path." in reply["message"]
