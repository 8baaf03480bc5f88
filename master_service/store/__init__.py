"""The facts, kept: one class per writer over one database. All give and take the values of `master_service.facts`."""

from __future__ import annotations

from master_service.database import Database
from master_service.settings import Settings
from master_service.store.audit import Audit
from master_service.store.history import History
from master_service.store.hosts import Hosts
from master_service.store.leases import Term
from master_service.store.notices import Notices
from master_service.store.people import People
from master_service.store.pushes import Pushes
from master_service.store.reading import Reading
from master_service.store.replies import Replies
from master_service.store.reports import Reports
from master_service.store.times import Times
from master_service.store.tokens import Tokens
from master_service.store.wishes import Wishes


class Store:
    """All doors to one database. What the daemons write belongs to their master's `term`."""

    def __init__(self, database: Database, settings: Settings, term: Term | None = None) -> None:
        term = term or Term()
        self.database = database
        self.reading = Reading(database)
        self.wishes = Wishes(database, term)
        self.reports = Reports(database, term, settings)
        self.pushes = Pushes(database, term, settings)
        self.history = History(database)
        self.replies = Replies(database)
        self.hosts = Hosts(database)
        self.people = People(database)
        self.tokens = Tokens(database)
        self.audit = Audit(database)
        self.notices = Notices(database, term)
        self.times = Times(database, term, settings)


__all__ = ["Store"]
