"""Workers over HTTP: drain, fence, cached images, metrics."""


async def test_drained_worker_gets_no_new_vm_until_it_is_undrained(world):
    dry_run = (await world.http.post("/workers/w1/drain", params={"dry_run": "true"})).json()
    assert (dry_run["dry_run"], dry_run["worker"]["draining"]) == (True, True)
    assert (await world.http.get("/workers/w1")).json()["draining"] is False
    assert (await world.http.post("/workers/w1/drain")).json()["worker"]["draining"] is True
    await world.create()
    waiting = await world.until(lambda vm: "drained" in vm["reason"])
    assert waiting["status"] == "pending"
    assert (await world.http.post("/workers/w1/undrain")).json()["worker"]["draining"] is False
    await world.status("running")
    assert (await world.http.post("/workers/ghost/drain")).status_code == 404


async def test_fence_needs_confirmation_and_a_silent_worker(world):
    await world.create()
    await world.status("running")
    unsure = await world.http.post("/workers/w1/fence", json={"i_have_fenced": "w2"})
    assert (unsure.status_code, unsure.json()["errors"][0]["field"]) == (400, "i_have_fenced")
    assert (await world.http.post("/workers/w1/fence", json={"i_have_fenced": "w1"})).status_code == 409
    world.salt.silent.add("w1")
    await world.poll()
    dry_run = (await world.http.post("/workers/w1/fence", json={"i_have_fenced": "w1"}, params={"dry_run": "1"})).json()
    uuid = (await world.show())["uuid"]
    assert (dry_run["moved"], (await world.show())["worker"]) == ([uuid], "w1")
    assert (await world.http.post("/workers/w1/fence", json={"i_have_fenced": "w1"})).json()["moved"] == [uuid]
    await world.until(lambda vm: vm["worker"] is None)


async def test_workers_show_images_and_metrics(world):
    assert (await world.http.get("/images")).json() == []
    await world.create()
    await world.status("running")
    text = (await world.http.get("http://master/metrics")).text
    assert 'saltern_vms{status="running"} 1.0' in text
    assert 'saltern_workers{state="reachable"} 1.0' in text
    del world.http.headers["Authorization"]
    assert (await world.http.get("http://master/metrics")).status_code == 401
