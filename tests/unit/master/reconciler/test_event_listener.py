"""The event listener alone: its retries, and the poll after it has connected."""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest

from master_service.core.errors import SaltError
from master_service.planning.decision import backoff
from master_service.reconciler.event_listener import EventListener
from tests.scenarios.virtual_time import VirtualLoop
from tests.unit.master.builders import SETTINGS, UUID


class Flaky:
    """A salt-api whose event stream cannot be opened, or is silent once it is."""

    def __init__(self, opens):
        self.opens, self.rejected_by = opens, []

    @asynccontextmanager
    async def events(self):
        self.rejected_by.append(asyncio.get_running_loop().time())
        if not self.opens:
            raise SaltError("salt-api does not answer.")
        yield self.silent()

    async def silent(self):
        await asyncio.Event().wait()
        yield


class Polls:
    answered = frozenset()

    def __init__(self):
        self.requested = 0

    def request(self):
        self.requested += 1


def listen(salt, for_s):
    """Run a listener for that long in virtual time, and return the number of polls that it requested."""
    polls = Polls()

    async def run():
        parts = SimpleNamespace(salt=salt, settings=SETTINGS)
        task = asyncio.create_task(EventListener(parts, None, polls).run())
        await asyncio.sleep(for_s)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(run())
    return polls.requested


def test_reconnect_pause_doubles_up_to_a_bound_with_jitter():
    salt = Flaky(opens=False)
    assert listen(salt, 120) == 0
    pauses = [after - before for before, after in zip(salt.rejected_by, salt.rejected_by[1:], strict=False)]
    for n, pause in enumerate(pauses):
        longest = min(15.0, 0.5 * 2**n)
        assert longest / 2 <= pause <= longest + 1e-6
    assert len(set(pauses[5:])) > 1


def test_silent_stream_is_reopened_and_everything_is_polled():
    salt = Flaky(opens=True)
    polls = listen(salt, 4 * SETTINGS.heartbeat_timeout_s)
    assert polls == len(salt.rejected_by) > 2
    assert salt.rejected_by[1] >= SETTINGS.heartbeat_timeout_s


@pytest.mark.parametrize("tries", range(1, 8))
def test_back_off_grows_is_bounded_and_differs_from_vm_to_vm(tries):
    waits = {backoff(tries, f"{UUID}{n}", SETTINGS).total_seconds() for n in range(20)}
    least = SETTINGS.retry_base_s * tries**2
    assert all(min(SETTINGS.retry_cap_s, least) <= wait <= SETTINGS.retry_cap_s for wait in waits)
    assert len(waits) > 1 or least >= SETTINGS.retry_cap_s
