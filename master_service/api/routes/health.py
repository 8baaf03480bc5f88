"""`/healthz` (alive), `/readyz` (each part, with reasons), `/version`. Public, without data about VMs."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from sqlalchemy.exc import SQLAlchemyError

from master_service import __version__
from master_service.api.protocol.auth import TheMaster
from master_service.api.protocol.schemas import DesiredVMs
from master_service.core.errors import SaltError
from master_service.services.master import Master
from worker_service.contract import PROTOCOL

router = APIRouter(tags=["health"])


class Check(BaseModel):
    """The state of one part."""

    ok: bool
    message: str


class Ready(BaseModel):
    """Whether the master can do its work now."""

    ready: bool
    checks: dict[str, Check]


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Answer while the process runs."""
    return {"status": "ok"}


@router.get("/version")
async def version() -> dict[str, str | int]:
    """Return the version of the master, and of its protocol with workers."""
    return {"version": __version__, "protocol": PROTOCOL}


@router.get("/schemas/vms.json", response_model=None)
async def vms_schema() -> dict[str, Any]:
    """Return the JSON Schema of files for `saltern apply -f`, for editors and authors."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **DesiredVMs.model_json_schema()}


@router.get("/readyz", responses={503: {"model": Ready}})
async def readyz(master: TheMaster, response: Response) -> Ready:
    """Check database, salt-api, event stream, daemons and workers; 503 with the reasons while one of them fails."""
    checks = {
        "database": await _database(master),
        "salt_api": await _salt_api(master),
        "event_stream": _event_stream(master),
        "daemons": _daemons(master),
    }
    if checks["database"].ok:
        checks["workers"] = await _workers(master)
    ready = all(check.ok for check in checks.values())
    if not ready:
        response.status_code = 503
    return Ready(ready=ready, checks=checks)


async def _database(master: Master) -> Check:
    try:
        await master.context.store.queries.ping()
    except SQLAlchemyError as err:
        return Check(ok=False, message=f"does not answer ({type(err).__name__}); check database_url and the disk")
    return Check(ok=True, message="answers")


async def _salt_api(master: Master) -> Check:
    try:
        await master.context.salt.check()
    except SaltError as err:
        return Check(ok=False, message=f"{err} {err.hint}")
    return Check(ok=True, message="accepts the account of the gate")


def _event_stream(master: Master) -> Check:
    if not master.lease.held:
        return Check(ok=True, message=f"is read by another master ({master.lease.others or 'none yet'})")
    age_s = master.listener.age_s
    if age_s is None:
        return Check(ok=False, message="is not open; the log shows why")
    return Check(ok=True, message=f"is open; last event {age_s:.0f} s ago")


def _daemons(master: Master) -> Check:
    if master.fault:
        return Check(
            ok=False, message=f"do not work: {master.fault}; the master starts them again, and the log shows why"
        )
    return Check(ok=True, message="work" if master.lease.held else "wait for their turn")


async def _workers(master: Master) -> Check:
    workers = [worker for worker in await master.context.store.queries.workers() if worker.key]
    silent = [worker.id for worker in workers if worker.unreachable_since is not None]
    if len(silent) == len(workers):
        message = f"none answers ({', '.join(silent)})" if silent else "none is enrolled"
        advice = "accept its minion's key, check that the minion runs, and enroll it: saltern workers enroll ID"
        return Check(ok=False, message=f"{message}; {advice}")
    return Check(ok=True, message=f"{len(workers) - len(silent)} of {len(workers)} answer")
