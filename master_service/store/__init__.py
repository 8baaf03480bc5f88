"""The facts, kept: one class per writer over one database. All give and take values of `planning`."""

from __future__ import annotations

from master_service.core.settings import Settings
from master_service.db.engine import Database
from master_service.db.fencing import Term
from master_service.store.accounts import People
from master_service.store.audit import Audit
from master_service.store.clock_repair import Times
from master_service.store.desired import Wishes
from master_service.store.dispatch import Pushes
from master_service.store.history import History
from master_service.store.idempotency import Replies
from master_service.store.notifications import Notices
from master_service.store.observed import Reports
from master_service.store.queries import Reading
from master_service.store.tokens import Tokens
from master_service.store.workers import Hosts


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
