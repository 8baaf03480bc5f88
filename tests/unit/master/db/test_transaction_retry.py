"""Which failures of a transaction are retried, and how often."""

import pytest
from sqlalchemy.exc import DBAPIError

from master_service.db import engine
from master_service.db.engine import database_method


class Failure(Exception):
    def __init__(self, sqlstate):
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("failures", "tries", "raises"),
    [
        ([], 1, False),
        (["40P01"], 2, False),
        (["40001"], 2, False),
        (["40P01"] * 3, 4, False),
        (["40P01", "23505"], 2, True),
        (["40P01"] * 4, 4, True),
        (["23505"], 1, True),
        ([None], 1, True),
    ],
    ids=[
        "none",
        "deadlock",
        "serialization",
        "deadlock three times",
        "deadlock, then another",
        "deadlock four times",
        "unique violation",
        "no SQLSTATE",
    ],
)
async def test_aborted_transaction_is_retried(monkeypatch, failures, tries, raises):
    monkeypatch.setattr(engine, "_RETRY_AFTER_S", (0, 0, 0))
    calls = []

    @database_method
    async def method(value):
        calls.append(value)
        if len(calls) <= len(failures):
            raise DBAPIError("UPDATE", {}, Failure(failures[len(calls) - 1]))
        return value

    if raises:
        with pytest.raises(DBAPIError):
            await method(7)
    else:
        assert await method(7) == 7
    assert calls == [7] * tries
