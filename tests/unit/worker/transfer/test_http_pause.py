"""The pause that a store asks for with Retry-After is a part of the error, and bounded."""

import httpx2
import pytest

from worker_service.contract.retry_after import MAX_PAUSE_S
from worker_service.core.errors import SalternError, TransferFailed
from worker_service.transfer.http import require_success
from worker_service.transfer.http_put import _with
from worker_service.transfer.uri import parse


def failure(status, retry_after):
    answer = httpx2.Response(status, headers={"Retry-After": retry_after} if retry_after else {})
    with pytest.raises(TransferFailed) as failed:
        require_success(parse("https://store.example/a"), answer)
    return failed.value


@pytest.mark.parametrize("status", [429, 503, 500, 502, 504])
def test_passing_fault_is_waited_for(status):
    err = failure(status, "45")
    assert (err.retry, err.wait_s) == (True, 45)
    assert f"answered {status}" in str(err)
    assert str(err).endswith("The server asks for a pause of 45 s.")
    assert failure(status, "").wait_s == 0


@pytest.mark.parametrize("retry_after", ["601", "86400", "Thu, 31 Dec 2999 23:59:59 GMT"])
def test_pause_is_bounded(retry_after):
    assert failure(503, retry_after).wait_s == MAX_PAUSE_S == 600


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_lasting_fault_is_not_waited_for(status):
    err = failure(status, "45")
    assert (err.retry, err.wait_s) == (False, 0)


@pytest.mark.parametrize("more", [None, "It was removed."])
def test_error_that_says_more_keeps_the_pause(more):
    err = _with(TransferFailed("Busy.", wait_s=45), more)
    assert (type(err), err.wait_s, err.retry) == (TransferFailed, 45, True)
    assert SalternError("x").wait_s == 0
