"""Facts in the database: one class for each writer. All of them take and return values of `planning`."""

from __future__ import annotations

from master_service.core.settings import Settings
from master_service.db.engine import Database
from master_service.db.fencing import FencingToken
from master_service.store.accounts import AccountStore
from master_service.store.audit import AuditStore
from master_service.store.clock_repair import ClockRepair
from master_service.store.desired import DesiredStore
from master_service.store.dispatch import DispatchStore
from master_service.store.history import HistoryStore
from master_service.store.idempotency import IdempotencyStore
from master_service.store.notices import NoticeStore
from master_service.store.observed import ObservedStore
from master_service.store.operations import OperationStore
from master_service.store.queries import VmQueries
from master_service.store.tokens import TokenStore
from master_service.store.workers import WorkerStore


class Store:
    """All writers and readers of one database. The writes of daemons are checked against their master's `term`."""

    def __init__(self, database: Database, settings: Settings, term: FencingToken | None = None) -> None:
        term = term or FencingToken()
        self.database = database
        self.queries = VmQueries(database)
        self.desired = DesiredStore(database, term)
        self.observed = ObservedStore(database, term, settings)
        self.dispatch = DispatchStore(database, term, settings)
        self.history = HistoryStore(database)
        self.idempotency = IdempotencyStore(database)
        self.workers = WorkerStore(database)
        self.accounts = AccountStore(database)
        self.tokens = TokenStore(database)
        self.audit = AuditStore(database)
        self.operations = OperationStore(database)
        self.notices = NoticeStore(database, term)
        self.clock_repair = ClockRepair(database, term, settings)


__all__ = ["Store"]
