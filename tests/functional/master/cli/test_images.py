"""`saltern images`: waiting for a prefetch, its end by a person, cancelling, cleaning, the list."""

import time
from types import SimpleNamespace

import pytest

from master_service.cli.commands import images
from tests.functional.master.fakes import FakeSalt, FakeWorker

URI, OTHER = "file:/srv/images/debian.qcow2", "https://host.test/other.qcow2"
COMING = {"progress": {"phase": "prefetch", "done": 1 << 20, "total": 4 << 20}}


@pytest.fixture
def salt():
    return FakeSalt(FakeWorker("w1"), FakeWorker("w2", cached={OTHER: True}))


def pausing(monkeypatch, pause):
    """Act in the command's pauses, and in those of no other thread of this process."""
    monkeypatch.setattr(images, "time", SimpleNamespace(sleep=pause, monotonic=time.monotonic))


async def test_prefetch_is_waited_for(saltern):
    assert await saltern("images", "prefetch", URI, "--worker", "w1") == (0, "w1: in the cache (1.0 MiB)\n", "")
    assert await saltern("images", "prefetch", URI, "--worker", "w1", "--no-wait") == (0, "w1: done\n", "")


async def test_prefetch_of_what_does_not_exist_fails(saltern, salt):
    problem = "file:/srv/images/nosuch cannot be opened: no such file"
    salt.workers["w1"].orders[URI] = {"tries": 1, "problem": problem, "given_up": True}
    code, out, err = await saltern("images", "prefetch", URI)
    assert (code, out) == (1, "w2: in the cache (1.0 MiB)\n")
    assert f"w1: {problem}" in err


async def test_prefetch_shows_its_progress_until_it_is_cancelled(saltern, salt, monkeypatch):
    orders = salt.workers["w1"].orders
    orders[URI] = COMING
    pausing(monkeypatch, lambda _seconds: orders.clear())  # somebody cancels it meanwhile
    code, _, err = await saltern("images", "prefetch", URI, "--worker", "w1")
    assert code == 1
    assert err.splitlines()[0] == "w1: fetching image 20%"
    assert "w1: cancelled" in err


@pytest.mark.parametrize(
    ("order", "silent", "line"),
    [
        (COMING, False, "fetching on w1 (25 % of 4.0 MiB)"),
        ({"progress": {"phase": "prefetch", "done": 1 << 20}}, False, "fetching on w1 (1.0 MiB)"),
        ({"tries": 1, "problem": "HTTP 500"}, False, "failed once on w1, tried again: HTTP 500"),
        ({}, False, "waiting on w1"),
        ({}, True, "w1: no answer"),
    ],
)
async def test_prefetch_that_takes_longer_goes_on(saltern, salt, monkeypatch, order, silent, line):
    salt.workers["w1"].orders[URI] = order
    send = images.Client.post

    def post(*words, **more):
        answer = send(*words, **more)
        salt.silent |= {"w1"} if silent else set()
        return answer

    monkeypatch.setattr(images.Client, "post", post)
    code, _, err = await saltern("images", "prefetch", URI, "--worker", "w1", "--timeout", "0")
    assert code == 4
    assert f"Not within 0 s, and the fetch goes on: {line}" in err


async def test_waiting_that_a_person_ends_leaves_the_fetch(saltern, salt, monkeypatch):
    def interrupt(_seconds):
        raise KeyboardInterrupt

    salt.workers["w1"].orders[URI] = COMING
    pausing(monkeypatch, interrupt)
    code, _, err = await saltern("images", "prefetch", URI, "--worker", "w1")
    assert code == 130
    assert f"The fetch goes on. `saltern images` shows it, and `saltern images cancel {URI}` ends it." in err
    assert URI in salt.workers["w1"].orders


async def test_cancel_ends_the_fetch_on_its_worker(saltern, salt):
    salt.workers["w1"].orders[URI] = COMING
    assert await saltern("images", "cancel", URI) == (0, "w1: done\n", "")
    code, out, err = await saltern("images", "cancel", URI)
    assert (code, "w1: file:/srv/images/debian.qcow2 is not being prefetched." in out) == (1, True)
    assert "Nothing was cancelled." in err


async def test_clean_shows_what_it_would_remove(saltern, salt, monkeypatch):
    salt.workers["w1"].cached[URI] = False
    preview = f"w1: {URI} (1.0 MiB)\nw1: would free 1.0 MiB in 1 images\nw2: would free 0.0 MiB in 0 images\n"
    assert await saltern("images", "clean", "--dry-run") == (0, preview, "")
    code, out, err = await saltern("images", "clean")
    assert (code, out) == (2, preview)
    assert "Give -y" in err
    monkeypatch.setattr(images.terminal, "is_interactive", lambda: True)
    assert (await saltern("images", "clean", typed="n\n"))[0] == 1
    assert salt.workers["w1"].cached == {URI: False}
    code, out, _ = await saltern("images", "clean", "--worker", "w1", typed="y\n")
    assert (code, "w1: freed 1.0 MiB in 1 images" in out, salt.workers["w1"].cached) == (0, True, {})
    assert (await saltern("images", "clean", "-y"))[0] == 0
    salt.silent.add("w2")
    code, out, err = await saltern("images", "clean", "-y")
    assert (code, "1 of 2 workers did not do it" in err) == (1, True)


async def test_list_shows_what_is_coming_failed_and_pinned(saltern, salt, served):
    salt.workers["w1"].orders[URI] = {"tries": 3, "problem": "gone", "given_up": True}
    await saltern("images", "pin", OTHER, "--worker", "w2")
    code, out, _ = await saltern("images")
    assert code == 0
    assert out.splitlines()[0].split("  ")[0] == "URI"
    assert "failed on w1: gone" in out
    assert "w2 (by admin)" in out
    assert "2001-09-09 01:46:40" in out
    await served.person("uma")
    salt.workers["w2"].public.add(OTHER)
    code, out, _ = await saltern("images", token="token-of-uma")
    assert (code, out.split()) == (0, ["URI", "SIZE", OTHER, "1.0", "MiB"])
    await served.poll()
    salt.down = True
    code, out, err = await saltern("images")
    assert (code, OTHER in out, "The workers were not asked." in err) == (0, True, True)
