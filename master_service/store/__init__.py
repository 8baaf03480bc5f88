"""The facts, kept: one class per writer over one database. All give and take the values of `master_service.facts`."""

from __future__ import annotations

from master_service.database import Database
from master_service.store.people import People
from master_service.store.pushes import Pushes
from master_service.store.reading import Reading
from master_service.store.reports import Reports
from master_service.store.wishes import Wishes


class Store:
    """All doors to one database."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.reading = Reading(database)
        self.wishes = Wishes(database)
        self.reports = Reports(database)
        self.pushes = Pushes(database)
        self.people = People(database)


__all__ = ["Store"]
