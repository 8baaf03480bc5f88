"""Fifty equal starts at once at a real worker API: one VM, one domain, one download, and one answer to all."""

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx2
import pytest

from devstack.stack import LIBVIRT_URI
from tests.functional.worker.serving import process
from tests.lib.faults import standing
from tests.lib.support import PATIENCE_S, eventually, helpers, virsh
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.state.record import new_uuid

AT_ONCE = 50
SAME = 1
"""Requests of one fetch."""


@pytest.fixture
def image(httpserver, bootchain):
    """URI of a guest that stays up, on a server that remembers who asked for it."""
    data = bootchain("equal.raw", variant="spin").read_bytes()
    httpserver.expect_request("/equal.raw").respond_with_data(data, headers={"ETag": '"v1"'})
    return httpserver.url_for("/equal.raw")


@pytest.mark.parametrize(
    "named_by",
    [
        pytest.param(dict, id="a person, by name"),
        pytest.param(lambda: {"uuid": new_uuid(), "generation": 1}, id="a master, by uuid and generation"),
    ],
)
def test_equal_starts_are_one(fresh_site, httpserver, image, monkeypatch, named_by):
    site, together = fresh_site, threading.Barrier(AT_ONCE)
    parameters = {
        "name": "equal",
        "hda_image": image,
        "hda_save_to": f"file://{site.saved_file('equal')}",
        "mem_size": 32,
    }
    parameters |= named_by()
    monkeypatch.setenv(ENVIRONMENT, "fetch.downloaded=stop")  # the helpers of the API stand still there

    with process(site.folder, LIBVIRT_URI) as url, ThreadPoolExecutor(AT_ONCE) as pool:
        monkeypatch.delenv(ENVIRONMENT)

        def post():
            authorized = {"Authorization": "Bearer all"}
            return httpx2.post(f"{url}/vmachines/start", json=parameters, headers=authorized, timeout=PATIENCE_S)

        def post_together():
            together.wait()
            return post()

        answers = [each.result() for each in [pool.submit(post_together) for _ in range(AT_ONCE)]]
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
        replies = [answer.json() for answer in answers]
        assert all(reply["success"] for reply in replies)
        (uuid,) = {reply["uuid"] for reply in replies}
        assert uuid == parameters.get("uuid", uuid)
        assert sorted(reply["message"].startswith("Accepted") for reply in replies) == [False] * (AT_ONCE - 1) + [True]

        eventually(lambda: standing(site.settings, uuid))
        (held,) = helpers(site.settings)
        os.kill(held, signal.SIGCONT)
        site.wait("equal", "running")
        assert post().json()["uuid"] == uuid

    assert len(httpserver.log) == SAME
    assert [vm["uuid"] for vm in site.call("list")["vmachines"]] == [uuid]
    assert virsh("list", "--all", "--uuid").split().count(uuid) == 1
    assert virsh("list", "--all", "--name").split().count("equal") == 1
    assert [path.name for path in (site.folder / "data/vms").iterdir()] == [uuid]
    assert site.call("destroy", uuid=uuid)["success"]
    assert site.leftovers() == set()
