"""`saltern history` and `events`: each event once, with its sentence and cause; destroyed VMs by their names."""

import asyncio
import json

import pytest

from tests.functional.master.conftest import eventually
from worker_service.contract import HaltCause, Status

MANUAL = {"run_policy": "manual"}


async def halt(world, cause):
    uuid = (await world.status("running"))["uuid"]
    world.salt.workers["w1"].turn(uuid, Status.HALTED, cause)
    world.salt.report("w1", uuid)


async def listening(world):
    await eventually(lambda: bool(world.master.context.changes._subscribers))


@pytest.mark.parametrize("command", ["history", "events", "show"])
async def test_vm_that_never_was_is_an_error(saltern, command):
    code, out, err = await saltern(command, "ghost")
    assert (code, out, "There is no VM 'ghost'" in err) == (3, "", True)


async def test_destroyed_vm_is_found_by_its_name(saltern, served):
    old = await served.create(**MANUAL)
    assert (await saltern("destroy", "web01"))[0] == 0
    code, out, err = await saltern("history", "web01", "-o", "json")
    assert (code, [entry["message"] for entry in json.loads(out)]) == (0, ["create", "destroy", "destroyed"])
    assert f"web01 was destroyed at {old['created_at'][:10]}" in err
    assert old["uuid"] in err
    code, out, err = await saltern("events", "web01", "-o", "json")
    assert (code, [json.loads(line)["status"] for line in out.splitlines()]) == (
        0,
        ["halted", "destroying", "destroyed"],
    )
    code, out, err = await saltern("show", "web01")
    assert (code, out, f"`saltern show {old['uuid']}`" in err) == (3, "", True)
    assert (await saltern("show", old["uuid"], "-o", "name"))[:2] == (0, "web01\n")


async def test_history_says_which_vm_of_a_name_it_shows(saltern, served):
    old = await served.create(**MANUAL)
    await saltern("destroy", "web01")
    new = await served.create(**MANUAL)
    code, out, err = await saltern("history", "web01", "-o", "json")
    assert (code, [entry["message"] for entry in json.loads(out)]) == (0, ["create"])
    assert f"This is {new['uuid']}. Destroyed VMs had the same name: {old['uuid']} (until " in err
    code, out, err = await saltern("history", old["uuid"], "-o", "json")
    assert (code, len(json.loads(out))) == (0, 3)
    assert err.startswith("web01 was destroyed at ")


async def test_cause_and_number_of_restarts_are_shown(saltern, served):
    await served.create()
    await halt(served, HaltCause.CRASHED)
    await served.until(lambda vm: (vm["restarts"], vm["status"]) == (1, "running"))
    out = (await saltern("list"))[1].splitlines()[1]
    assert "running (restart 1 of 5)" in out
    wide = (await saltern("list", "-o", "wide", "--columns", "name,restarts"))[1].splitlines()
    assert [line.split(maxsplit=1) for line in wide] == [["NAME", "RESTARTS"], ["web01", "1 of 5"]]
    out = (await saltern("history", "web01"))[1]
    assert "It is halted. (crashed)" in out
    assert "sent, try 1 (it crashed; restart 1 of 5)" in out
    entries = json.loads((await saltern("history", "web01", "-o", "json"))[1])
    assert [entry["sentence"] for entry in entries if entry["cause"]] == [
        "w1 reports halted, was running (crashed): It is halted.",
        "start was sent to w1: it crashed; restart 1 of 5",
    ]


async def test_guest_that_shuts_down_is_the_cause(saltern, served):
    await served.create()
    await halt(served, HaltCause.GUEST)
    await served.until(lambda now: now["desired"] == "halted")
    out = (await saltern("history", "web01", "--columns", "sentence", "--no-header"))[1].splitlines()
    assert out[-2:] == [
        "w1 reports halted, was running (guest shut down): It is halted.",
        "the desired state becomes halted: its guest shut it down",
    ]


async def test_events_have_a_header_a_date_and_a_sentence(saltern, served):
    task = asyncio.create_task(saltern("events", "-n", "2"))
    await listening(served)
    vm = await served.create(**MANUAL)
    await served.ask("modify", json={"hda_save_to": "file:///srv/x"})
    code, out, err = await task
    assert code == 0, err
    title, first, second = out.splitlines()
    assert title.split("  ")[0] == "AT (UTC)"
    assert title.split()[2:] == ["NAME", "STATUS", "EVENT"]
    assert first.startswith(vm["created_at"][:10])
    assert first.split()[2:4] == ["web01", "halted"]
    assert first.endswith("admin created it; its desired state is halted")
    assert second.endswith("admin modified it")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (("web02",), "web02 web02"),
        (("--owner", "uma"), "umas umas umas"),
        (("--label", "role=db"), "db01 db01 db01"),
        (("--label", "role"), "db01 web02 web02 db01 db01"),
        (("--status", "halted"), "db01 umas"),
        (("--status", "halted", "--status", "destroyed"), "db01 umas web02 db01 umas"),
    ],
)
async def test_events_are_filtered(saltern, served, words, names):
    """The events of one VM end with it."""
    await served.person("uma")
    await served.create(name="web02", labels={"role": "web"}, **MANUAL)
    number = () if words == ("web02",) else ("-n", str(len(names.split())))
    task = asyncio.create_task(saltern("events", *words, "-o", "json", *number))
    await listening(served)
    await served.create(name="db01", labels={"role": "db"}, **MANUAL)
    body = {"name": "umas", "hda_image": "file:/srv/images/web.qcow2", **MANUAL}
    await served.http.post("/vmachines", json=body, headers=served.of("uma"))
    for name in ("web02", "db01", "umas"):
        await served.ask("destroy", name)
    code, out, err = await task
    assert code == 0, err
    assert " ".join(json.loads(line)["name"] for line in out.splitlines()) == names


async def test_unknown_status_is_refused_before_anything_is_read(saltern):
    code, _, err = await saltern("events", "--status", "fine")
    assert (code, "'fine' is no status" in err) == (2, True)
