"""Errors of the database: its own failures apart from bugs of the master."""

import sqlite3

import psycopg
import pytest
from psycopg import errors
from sqlalchemy.exc import IntegrityError, InvalidRequestError, OperationalError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from master_service.core.errors import DatabaseAway, DatabaseFull
from master_service.db.engine import classify_database_error


def sqlite(code):
    made = sqlite3.OperationalError("secret words")
    made.sqlite_errorcode = code
    return OperationalError("INSERT", {}, made)


def postgresql(kind):
    return OperationalError("INSERT", {}, kind("secret words"))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (sqlite(sqlite3.SQLITE_FULL), DatabaseFull),
        (sqlite(sqlite3.SQLITE_BUSY), DatabaseAway),
        (sqlite(sqlite3.SQLITE_BUSY_SNAPSHOT), DatabaseAway),
        (sqlite(sqlite3.SQLITE_IOERR_WRITE), DatabaseAway),
        (sqlite(sqlite3.SQLITE_IOERR_SHMSIZE), DatabaseAway),
        (sqlite(sqlite3.SQLITE_READONLY), DatabaseAway),
        (sqlite(sqlite3.SQLITE_CANTOPEN), DatabaseAway),
        (sqlite(sqlite3.SQLITE_CORRUPT), DatabaseAway),
        (sqlite(sqlite3.SQLITE_ERROR), None),  # no such column: a bug
        (postgresql(errors.DiskFull), DatabaseFull),
        (postgresql(errors.AdminShutdown), DatabaseAway),
        (postgresql(errors.LockNotAvailable), DatabaseAway),
        (postgresql(errors.TooManyConnections), DatabaseAway),
        (postgresql(psycopg.OperationalError), DatabaseAway),
        (postgresql(psycopg.InterfaceError), DatabaseAway),
        (ProgrammingError("SELECT", {}, errors.UndefinedColumn("x")), None),
        (IntegrityError("INSERT", {}, errors.UniqueViolation("x")), None),
        (PoolTimeout(), DatabaseAway),
        (InvalidRequestError("x"), None),
    ],
)
def test_every_database_error_has_its_kind(error, message):
    found = classify_database_error(error)
    assert type(found) is (message or type(None))
    if found is not None:
        assert found.hint
        assert "secret" not in str(found) + found.hint
