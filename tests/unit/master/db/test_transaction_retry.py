"""Which failures of a transaction are redone, and how often."""

import pytest
from sqlalchemy.exc import DBAPIError

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
        (["40P01", "40P01"], 2, True),
        (["23505"], 1, True),
        ([None], 1, True),
    ],
    ids=["none", "deadlock", "serialization", "deadlock twice", "unique violation", "no SQLSTATE"],
)
async def test_aborted_transaction_is_retried_once(failures, tries, raises):
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
