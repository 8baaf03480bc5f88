"""When a failed step is tried again: pauses of starts and saves, and those that a server asks for."""

from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from tests.lib.support import Site
from worker_service.contract import TRIES
from worker_service.core.errors import BadImage, TransferFailed
from worker_service.core.settings import Settings
from worker_service.helper import launcher, step_loop
from worker_service.helper.prefetch import Orders
from worker_service.operations import cache
from worker_service.state.context import WorkerContext
from worker_service.state.lifecycle import Step, wait_s
from worker_service.state.record import Phase
from worker_service.steps import retry

NOW = datetime(2026, 11, 30, 5, 0, tzinfo=UTC)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A worker without helpers, whose clock stands still."""
    monkeypatch.setattr(launcher, "start_helper", lambda *_: True)
    monkeypatch.setattr(launcher, "start_prefetch", lambda *_: True)
    monkeypatch.setattr(WorkerContext, "now", lambda _worker: NOW)
    return Site(tmp_path, libvirt_uri="test:///default", retry_delay_s=10.0)


def started(site, **fields):
    uuid = site.call("start", name="a", hda_image="blank:1M", mem_size=16)["uuid"]
    return site.worker.store.update(uuid, lambda record: msgspec.structs.replace(record, **fields))


def pauses(site, record, err, step):
    """Return the pauses after failed tries, in seconds, until no try is left."""
    found = []
    for _ in range(TRIES):
        retry.failed(site.worker, record, step, err)
        record = site.worker.store.read(record.uuid)
        if record.phase is Phase.START_FAILED:
            break
        found.append(wait_s(record, step, NOW))
    return found


@pytest.mark.parametrize(("requested_s", "expected"), [(0, [10, 60]), (5, [10, 60]), (45, [45, 60]), (600, [600, 600])])
def test_start_is_given_up_after_more_than_a_minute(site, requested_s, expected):
    record = started(site)
    found = pauses(site, record, TransferFailed("Busy.", wait_s=requested_s), Step.FETCH)
    assert found == expected
    assert sum(found) > 60
    assert site.worker.store.read(record.uuid).message == "Busy."


def test_lasting_fault_of_a_start_is_not_repeated(site):
    assert pauses(site, started(site), BadImage("Bad."), Step.FETCH) == []


@pytest.mark.parametrize(("requested_s", "expected"), [(0, [10, 20, 40]), (45, [45, 45, 45])])
def test_save_has_three_tries(site, requested_s, expected):
    record = started(site, phase=Phase.SAVING)
    assert pauses(site, record, TransferFailed("Busy.", wait_s=requested_s), Step.SAVE) == expected
    assert site.worker.store.read(record.uuid).tries == TRIES


@pytest.mark.parametrize(
    ("retry_after", "pause_s"), [("45", 45), ("86400", 600), ("Mon, 30 Nov 2026 05:00:45 GMT", None), ("", 10)]
)
@pytest.mark.parametrize("status", [429, 503])
def test_problem_says_what_is_waited_for(site, httpserver, status, retry_after, pause_s):
    headers = {"Retry-After": retry_after} if retry_after else {}
    httpserver.expect_request("/a.raw").respond_with_data(b"", status=status, headers=headers)
    uri = httpserver.url_for("/a.raw")
    uuid = site.call("start", name="a", hda_image=uri, mem_size=16)["uuid"]
    step_loop._do(site.worker, uuid, Step.FETCH)
    record = site.worker.store.read(uuid)
    assert record.phase is Phase.FETCHING
    assert f"{uri} answered {status}" in record.problem
    if pause_s is not None:  # a date is compared with the clock of the machine
        assert wait_s(record, Step.FETCH, NOW) == pause_s
        assert (f"The worker waits {pause_s} s." in record.problem) == bool(retry_after)
    Orders(site.worker)
    assert cache.cache_prefetch(site.worker, uri=uri)["success"]
    ((key, order),) = Orders(site.worker).all()
    Orders(site.worker)._note_failure(key, order, TransferFailed("Busy.", wait_s=45))
    ((key, order),) = Orders(site.worker).all()
    assert order.next_try_at == NOW + timedelta(seconds=45)
    assert order.problem == "Busy. The worker waits 45 s."


def test_prefetch_keeps_no_slot_while_a_server_wants_a_pause(site, monkeypatch):
    assert cache.cache_prefetch(site.worker, uri="http://127.0.0.1:1/a.raw")["success"]
    orders = Orders(site.worker)
    ((key, order),) = orders.all()
    orders._note_failure(key, order, TransferFailed("Busy.", wait_s=45))
    orders.work(key)  # ends at once, without a try
    ((_key, waiting),) = orders.all()
    assert waiting.tries == 1
    started = []
    monkeypatch.setattr(launcher, "start_prefetch", lambda _worker, key: started.append(key))
    orders.start_pending()
    monkeypatch.setattr(WorkerContext, "now", lambda _worker: NOW + timedelta(seconds=46))
    orders.start_pending()
    assert started == [key]


def test_pauses_of_a_start_stay_the_same_after_the_last_try():
    delay = Settings(retry_delay_s=10.0).start_retry_delay
    assert [delay(tries).total_seconds() for tries in range(1, TRIES + 2)] == [10.0, 60.0, 60.0, 60.0]
