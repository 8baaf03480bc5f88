"""Regression: a name that is a path led out of the folder of names, and one with a zero byte raised an exception."""

import pytest

from tests.lib.support import Site


@pytest.mark.parametrize(
    "name", ["/proc/self/cwd", "../vms", "a\0b", "\ud800", "x" * 5000, "-rf", "a b", "..", {"a": 1}]
)
@pytest.mark.parametrize("verb", ["status", "destroy", "shutdown", "modify", "suspend", "save_retry", "screen"])
def test_path_is_no_name(tmp_path, verb, name):
    reply = Site(tmp_path, libvirt_uri="test:///default").call(verb, name=name)
    assert (reply["success"], reply["code"]) == (False, "bad_request"), reply
    reply["message"].encode()


def test_name_of_another_kind_of_file_is_no_vm(tmp_path):
    site = Site(tmp_path, libvirt_uri="test:///default")
    (tmp_path / "data/vms/outside").mkdir()
    (tmp_path / "data/vms/outside/record.json").write_text("{}")
    (tmp_path / "data/names/link").symlink_to("../vms/outside")
    assert site.call("status", name=str(tmp_path / "data/names/link"))["code"] == "bad_request"
