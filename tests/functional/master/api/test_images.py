"""Images: their state on each worker, cancelling and cleaning, and what a user may know."""

import pytest

from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeWorker

URI, OTHER = "file:/srv/images/debian.qcow2", "https://host.test/own.qcow2"
FAILED = {"tries": 1, "problem": "It is not there.", "given_up": True}


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1", cached={URI: False}), FakeWorker("w2"))


async def images(world, headers=None, **query):
    answer = await world.http.get("/images", params=query, headers=headers)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_state_of_an_image_is_known_for_each_worker(world):
    world.salt.workers["w2"].orders[URI] = {"progress": {"phase": "prefetch", "done": 1, "total": 4}}
    world.salt.workers["w2"].orders[OTHER] = FAILED
    shown = {image["uri"]: image for image in await images(world, sizes=True)}
    states = {(uri, copy["worker"]): copy["state"] for uri, image in shown.items() for copy in image["copies"]}
    assert states == {(URI, "w1"): "cached", (URI, "w2"): "fetching", (OTHER, "w2"): "failed"}
    assert (shown[URI]["workers"], shown[OTHER]["workers"]) == (["w1"], [])
    assert shown[OTHER]["copies"][0]["problem"] == "It is not there."
    world.salt.silent.add("w2")
    found = (await world.http.get("/images/copies", params={"uri": URI})).json()
    assert [(copy["worker"], copy["state"]) for copy in found] == [("w1", "cached"), ("w2", "unknown")]
    one = await world.http.get("/images/copies", params={"uri": OTHER, "worker": "w1"})
    assert [(copy["worker"], copy["state"]) for copy in one.json()] == [("w1", "absent")]
    assert (await world.http.get("/images/copies", params={"uri": "nope"})).status_code == 400


@on_both
async def test_pin_has_the_name_of_its_actor(world):
    await world.http.post("/images", json={"uri": OTHER, "workers": ["w1"]})
    pinned = await world.http.post("/images/pin", json={"uri": URI})
    assert [one["code"] for one in pinned.json()["workers"]] == ["", "not_found"]
    world.salt.workers["w1"].cached[OTHER] = True  # past the master
    shown = {image["uri"]: image for image in await images(world, sizes=True)}
    assert (shown[URI]["pinned"], shown[URI]["pinned_by"]) == (["w1"], "admin")
    assert (shown[OTHER]["pinned"], shown[OTHER]["pinned_by"]) == (["w1"], None)
    await world.http.post("/images", json={"uri": OTHER, "workers": ["w1"], "pin": True})
    assert {image["pinned_by"] for image in await images(world, sizes=True)} == {"admin"}


async def test_prefetch_is_cancelled(world):
    world.salt.workers["w2"].orders[OTHER] = {}
    answer = await world.http.post("/images/cancel", json={"uri": OTHER})
    assert [(one["worker"], one["success"], one["code"]) for one in answer.json()["workers"]] == [
        ("w1", False, "not_found"),
        ("w2", True, ""),
    ]
    assert world.salt.workers["w2"].orders == {}
    entry = (await world.http.get("/audit", params={"kind": "image"})).json()[0]
    assert (entry["verb"], entry["name"], entry["outcome"]) == ("cancel", OTHER, "done")


async def test_cleaning_is_shown_before_and_done_after(world):
    preview = await world.http.post("/images/clean", json={}, params={"dry_run": True})
    found = {one["worker"]: one for one in preview.json()["workers"]}
    assert (found["w1"]["images"], found["w1"]["size"]) == ([{"uris": [URI], "size": 1 << 20}], 1 << 20)
    assert (found["w2"]["images"], preview.json()["dry_run"]) == ([], True)
    assert world.salt.workers["w1"].cached == {URI: False}
    assert (await world.http.get("/audit", params={"kind": "image"})).json() == []
    world.salt.silent.add("w2")
    done = (await world.http.post("/images/clean", json={})).json()["workers"]
    assert [(one["worker"], one["success"], one["size"]) for one in done] == [("w1", True, 1 << 20), ("w2", False, 0)]
    assert world.salt.workers["w1"].cached == {}
    entry = (await world.http.get("/audit", params={"kind": "image"})).json()[0]
    assert (entry["verb"], entry["name"], entry["outcome"]) == ("clean", URI, "done")


async def test_user_gets_public_images_and_their_own(world):
    await world.person("uma")
    worker = world.salt.workers["w1"]
    assert await images(world, world.of("uma")) == []
    worker.public.add(URI)
    worker.cached[OTHER] = True
    worker.fetched_by[OTHER] = ["ann"]
    shown = await images(world, world.of("uma"), sizes=True)
    assert [(image["uri"], image["workers"], image["size"]) for image in shown] == [(URI, [], 1 << 20)]
    assert (shown[0]["copies"], shown[0]["pinned"], shown[0]["pinned_by"]) == (None, None, None)
    worker.fetched_by[OTHER].append("uma")
    assert [image["uri"] for image in await images(world, world.of("uma"))] == [URI, OTHER]
    for method, path in (("GET", f"/images/copies?uri={URI}"), ("POST", "/images/clean"), ("POST", "/images/cancel")):
        answer = await world.http.request(
            method, path, json={"uri": URI} if method == "POST" else None, headers=world.of("uma")
        )
        assert answer.status_code == 403
