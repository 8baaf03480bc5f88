"""Enrolls the simulated workers before their master starts, without a word in the audit."""

from sqlalchemy import create_engine
from sqlmodel import Session

from master_service.core.settings import Settings, database_url
from master_service.db.tables import WorkerRow
from tests.functional.master.fakes import FakeSalt


def enroll(settings: Settings, salt: FakeSalt) -> None:
    url = database_url(settings)
    engine = create_engine(url.set(drivername=url.drivername.replace("+aiosqlite", "")))
    with Session(engine) as session:
        for worker in salt.workers.values():
            row = session.get(WorkerRow, worker.id) or WorkerRow(id=worker.id)
            row.key = worker.fingerprint
            session.add(row)
        session.commit()
    engine.dispose()
