"""The work queue, after client-go's util/workqueue/queue_test.go."""

import asyncio

import pytest

from master_service.reconciler.work_queue import WorkQueue


async def test_key_added_while_processing_comes_once_more():
    queue = WorkQueue()
    queue.add("a")
    assert await queue.take() == ["a"]
    for _ in range(1000):
        queue.add("a")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(queue.take(), 0.01)
    queue.done("a")
    assert await queue.take() == ["a"]
    queue.done("a")
    assert queue.idle


async def test_added_many_times_before_it_is_taken_comes_once():
    queue = WorkQueue()
    for key in "abcab":
        queue.add(key)
    assert await queue.take() == ["a", "b", "c"]


async def test_finished_key_without_a_new_change_is_gone():
    queue = WorkQueue()
    queue.add("a")
    await queue.take()
    queue.done("a")
    assert queue.idle
    queue.done("a")
    assert queue.idle


async def test_other_keys_continue_while_one_is_processed():
    queue = WorkQueue()
    queue.add("a")
    await queue.take()
    queue.add("b")
    assert await queue.take() == ["b"]


async def test_workers_share_no_key_and_miss_no_change():
    queue, holding, observed, expected = WorkQueue(), set(), {}, {}

    async def work():
        while True:
            for key in await queue.take():
                assert key not in holding
                holding.add(key)
                latest = expected[key]
                await asyncio.sleep(0)
                observed[key] = latest
                holding.discard(key)
                queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(5)]
    for n in range(500):
        key = f"k{n % 7}"
        expected[key] = n
        queue.add(key)
        if n % 10 == 0:
            await asyncio.sleep(0)
    async with asyncio.timeout(60):
        while not queue.idle:  # noqa: ASYNC110 - what is tested announces nothing
            await asyncio.sleep(0)
    for task in workers:
        task.cancel()
    assert observed == expected


async def test_earliest_of_several_later_looks_is_kept():
    queue = WorkQueue()
    queue.add_after("a", 3600)
    queue.add_after("a", 0.01)
    queue.add_after("a", 1800)
    async with asyncio.timeout(60):
        assert await queue.take() == ["a"]
    queue.close()


async def test_look_now_takes_the_place_of_a_later_one():
    queue = WorkQueue()
    queue.add_after("a", 0.01)
    queue.add("a")
    await queue.take()
    queue.done("a")
    await asyncio.sleep(0.02)
    assert queue.idle


async def test_keys_with_the_same_time_become_ready_together():
    queue, due = WorkQueue(), asyncio.get_running_loop().time() + 0.01
    for key in "abc":
        queue.add_at(key, due)
    queue.add_after("a", 3600)
    async with asyncio.timeout(60):
        assert sorted(await queue.take()) == ["a", "b", "c"]
    queue.close()
