"""Operations on VMs and their progress, and images in the caches of workers."""

import pytest

from master_service.policy.permissions import Role
from tests.functional.master.databases import on_both
from tests.functional.master.fakes import FakeSalt, FakeWorker

pytestmark = on_both

URI = "file:/srv/images/debian.qcow2"


async def operations(world, **query):
    answer = await world.http.get("/operations", params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def test_operation_is_open_until_its_effect_is_observed(world):
    world.salt.by_itself = False
    await world.create()
    await world.status("preparing")
    await world.quiet()
    (create,) = await operations(world)
    assert (create["verb"], create["actor"], create["in_progress"], create["phase"]) == (
        "create",
        "admin",
        True,
        "preparing",
    )
    assert create["jid"]
    world.salt.settle()
    await world.status("running")
    (create,) = await operations(world, vm="web01")
    assert (create["outcome"], create["in_progress"], create["phase"]) == ("done", False, None)
    one = (await world.http.get(f"/operations/{create['id']}")).json()
    assert one == create
    assert await operations(world, in_progress=True) == []
    world.salt.workers["w1"].deaf = True
    await world.ask("shutdown")
    newest, older = await operations(world)
    assert (newest["verb"], newest["in_progress"], older["in_progress"]) == ("shutdown", True, False)
    assert [one["verb"] for one in await operations(world, limit=1, before=newest["id"])] == ["create"]


async def test_refused_operation_ends_with_its_reason(world):
    from worker_service.contract import Code

    world.salt.workers["w1"].refusals["start"] = Code.POLICY
    await world.create()
    await world.status("failed")
    (create,) = await operations(world)
    assert (create["outcome"], create["in_progress"]) == ("refused", False)
    assert "start is refused" in create["detail"]


async def test_users_see_all_operations_on_their_own_vms(world):
    await world.person("uma")
    await world.person("oscar", Role.OPERATOR)
    uma, oscar = world.of("uma"), world.of("oscar")
    await world.create()
    mine = await world.http.post("/vmachines", json={"name": "mine", "hda_image": URI}, headers=uma)
    assert mine.status_code == 201
    await world.http.post("/vmachines/mine/suspend", headers=oscar)
    observed = (await world.http.get("/operations", headers=uma)).json()
    assert [(one["verb"], one["actor"]) for one in observed] == [("suspend", "oscar"), ("create", "uma")]
    (theirs,) = await operations(world, vm="web01")
    assert (await world.http.get(f"/operations/{theirs['id']}", headers=uma)).status_code == 404
    for odd in ("x", "0", "9" * 30, "-1", "٣"):
        assert (await world.http.get(f"/operations/{odd}")).status_code == 404


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2"))


async def test_image_is_fetched_beforehand_and_stays(world):
    both = {"uri": URI, "workers": ["w1", "w2"]}
    world.salt.silent.add("w2")
    dry = await world.http.post("/images", json=both, params={"dry_run": "1"})
    assert (dry.status_code, {one["worker"] for one in dry.json()["workers"]}) == (200, {"w1", "w2"})
    assert world.salt.workers["w1"].cached == {}
    shown = await world.http.post("/images", json=both | {"pin": True})
    said = {one["worker"]: one for one in shown.json()["workers"]}
    assert (shown.status_code, said["w1"]["success"], said["w2"]["success"]) == (202, True, False)
    assert "did not answer" in said["w2"]["message"]
    world.salt.silent.clear()
    await world.poll()
    (image,) = (await world.http.get("/images")).json()
    assert (image["uri"], image["workers"], image["size"]) == (URI, ["w1", "w2"], None)
    (image,) = (await world.http.get("/images", params={"sizes": "true"})).json()
    assert (image["size"], image["pinned"]) == (1 << 20, ["w1", "w2"])
    gone = await world.http.post("/images/unpin", json={"uri": URI, "workers": ["w1"]})
    assert gone.json()["workers"] == [{"worker": "w1", "success": True, "message": "done", "code": ""}]
    assert world.salt.workers["w1"].cached == {URI: False}
    audit = (await world.http.get("/audit", params={"kind": "image"})).json()
    assert [(line["verb"], line["name"], line["outcome"]) for line in audit] == [
        ("unpin", URI, "done"),
        ("prefetch", URI, "done"),
    ]


@pytest.mark.parametrize("uri", ["s3://images/a.qcow2", "sftp://store.test/a.qcow2", "salt://images/a.qcow2"])
async def test_image_of_any_store_may_be_fetched_beforehand(world, uri):
    shown = await world.http.post("/images", json={"uri": uri, "workers": ["w1"]})
    assert (shown.status_code, world.salt.workers["w1"].cached) == (202, {uri: False})


async def test_images_that_make_no_sense(world):
    async def post(path="/images", **body):
        return await world.http.post(path, json=body)

    assert (await post(uri="blank:1G")).status_code == 400
    assert (await post(uri="nope")).status_code == 400
    assert (await post(uri=URI, workers=["ghost"])).status_code == 404
    refused = await post("/images/pin", uri=URI, workers=["w1"])
    assert refused.json()["workers"][0]["message"] == f"{URI} is not in the cache."
    world.salt.down = True
    assert (await post(uri=URI)).status_code == 503
