"""Commands that wait: their output and exit code when the effect is missing, refused, or under way."""

import pytest

from master_service.cli.common.options import LONGEST_BLOCK_S
from worker_service.contract import Code


@pytest.mark.parametrize("verb", ["suspend", "destroy"])
async def test_refusal_is_a_failure_in_the_workers_words(saltern, served, verb):
    await served.create()
    await served.status("running")
    served.salt.workers["w1"].refusals[verb] = Code.POLICY
    code, out, err = await saltern(verb, "web01")
    assert (code, out) == (1, "")
    assert f"{verb} of web01: w1 refuses it: {verb} is refused. It is" in err
    assert "it continues" not in err


async def test_refused_shutdown_ends_at_once_in_the_workers_words(saltern, served):
    await served.create()
    await served.status("running")
    served.salt.workers["w1"].refusals["shutdown"] = Code.POLICY
    code, out, err = await saltern("shutdown", "web01")
    assert (code, out) == (1, "")
    assert "web01 is running: w1 refuses to shutdown it: shutdown is refused\n" in err


async def test_refused_start_ends_at_once_in_the_workers_words(saltern, served):
    await served.create()
    await served.status("running")
    await served.ask("shutdown")
    await served.status("halted")
    served.salt.workers["w1"].refusals["start"] = Code.POLICY
    code, out, err = await saltern("start", "web01")
    assert (code, out) == (1, ""), err
    assert "web01 is halted: w1 refused to start it: start is refused\n" in err


@pytest.mark.parametrize(("verb", "status"), [("start", "halted"), ("shutdown", "running")])
async def test_refusal_that_may_pass_is_shown_while_it_waits(saltern, served, verb, status):
    await served.create()
    await served.status("running")
    if status == "halted":
        await served.ask("shutdown")
        await served.status("halted")
    served.salt.workers["w1"].refusals[verb] = Code.HYPERVISOR
    code, out, err = await saltern(verb, "web01", "--timeout", "3")
    assert (code, out) == (4, "")
    shown = f"(w1 refused the {verb}, which is sent again later: {verb} is refused)"
    *progress, end = [line for line in err.splitlines() if shown in line]
    assert end.startswith("saltern: Not within 3 s, it continues: web01 "), err
    assert len(progress) == 1, err


async def test_resume_without_acceptance_is_not_done(saltern, served):
    await served.create()
    await served.status("running")
    served.salt.lose_jobs = True
    assert (await saltern("suspend", "web01", "--no-wait"))[0] == 0
    code, out, err = await saltern("resume", "web01", "--timeout", "0.1")
    assert (code, out, "not observed within 0.1 s" in err) == (4, "", True)


@pytest.mark.parametrize("verb", ["suspend", "resume", "destroy", "save-retry"])
async def test_too_long_timeout_is_refused_with_the_limit(saltern, verb):
    code, _, err = await saltern(verb, "web01", "--timeout", "5000")
    assert (code, "3600" in err) == (2, True), err
    assert (await saltern(verb, "web01", "--timeout", "3600"))[0] == 3


async def test_longest_timeout_is_that_of_the_api(served):
    await served.create(run_policy="manual")
    for wait_s, status in ((LONGEST_BLOCK_S, 409), (LONGEST_BLOCK_S + 1, 400)):
        answer = await served.http.post("/vmachines/web01/suspend", params={"timeout_s": wait_s})
        assert answer.status_code == status, answer.text


async def test_file_with_surplus_not_yet_destroyed_is_not_applied(saltern, served, tmp_path):
    (tmp_path / "vms.yaml").write_text("vmachines: []")
    await served.create(name="old", labels={"group": "web"})
    await served.status("running", "old")
    served.salt.lose_jobs = True
    prune = ("apply", "-f", "vms.yaml", "--prune", "group=web", "--yes")
    code, out, err = await saltern(*prune, "--timeout", "0.1")
    assert (code, "destroy of old: not observed within 0.1 s; it continues. It is destroying" in err) == (4, True), err
    assert "old: destroy: it is" not in out
    code, out, err = await saltern(*prune, "--no-wait")
    assert (code, "old: destroy: it is destroying.\n" in out) == (0, True), err


async def test_file_waits_for_a_suspend_that_its_worker_took(saltern, served, tmp_path):
    """A report `suspended` from before an unseen resume proves nothing."""
    await served.create(name="web01")
    await served.status("running")
    await served.ask("suspend")
    served.salt.lose_jobs = True
    await served.ask("resume", timeout_s=0)
    expected = (await saltern("export"))[1].replace("state: running", "state: paused")
    (tmp_path / "vms.yaml").write_text(expected)
    code, out, err = await saltern("apply", "-f", "vms.yaml", "--timeout", "0.1")
    assert (code, "suspend of web01: not observed within 0.1 s" in err) == (4, True), out + err


async def test_wait_for_what_will_not_come_ends_at_once(saltern, served):
    await served.create(run_policy="manual")
    code, out, err = await saltern("wait", "web01", "--for", "running")
    assert (code, out) == (1, "")
    assert "web01 will not be running: it is halted, and its desired state is halted. `saltern start web01`" in err
    await served.create(name="web02")
    await served.status("running", "web02")
    code, _, err = await saltern("wait", "web02", "--for", "suspended")
    assert (code, "`saltern suspend web02` changes that" in err) == (1, True), err
    gone = (await served.http.delete("/vmachines/web02")).json()["vmachine"]["uuid"]
    assert await saltern("wait", gone, "--for", "running") == (1, "", "saltern: web02 was destroyed.\n")


async def test_list_and_wait_take_the_words_of_workers(saltern, served):
    await served.create()
    await served.status("running")
    await saltern("suspend", "web01")
    assert await saltern("wait", "web01", "--for", "suspended") == (0, "web01\n", "")
    assert (await saltern("list", "--status", "suspended", "-o", "name"))[1] == "web01\n"
    assert (await saltern("list", "--status", "failed_to_save", "-o", "name"))[1] == ""
    code, _, err = await saltern("list", "--status", "on")
    assert (code, "the workers' words are starting, failed to start" in err) == (2, True), err


async def test_wide_list_and_show_say_how_to_open_the_console(saltern, served):
    await served.create()
    await served.status("running")
    assert "saltern console-url web01" in (await saltern("list", "-o", "wide"))[1]
    assert "saltern console-url web01" in (await saltern("show", "web01"))[1]
