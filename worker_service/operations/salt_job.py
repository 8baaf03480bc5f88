"""The answer of a verb to a Salt job, or to `salt-call`: audited, and signed if a master wants that.

A master puts a nonce into the metadata of its jobs. It audits its own requests by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker_service.operations import verbs
from worker_service.operations.common import Reply
from worker_service.state import audit_spool
from worker_service.state.context import WorkerContext


def answer(
    worker: WorkerContext,
    verb: Callable[..., Reply],
    parameters: Mapping[str, Any],
    job: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Reply:
    """Return the reply. `job`: as Salt's minion got it, empty for other callers; `options`: those of the minion."""
    nonce = _nonce(job)
    last_event = worker.identity.last_event() if nonce else 0  # before the look at the VMs: later events tell more
    reply = verbs.answer(verb, worker, **parameters)
    if nonce:
        return worker.identity.sign(reply, nonce, options["id"], last_event)
    name = verb.__name__.strip("_")
    if options.get("__cli") == "salt-call":
        user = audit_spool.local_user()
        worker.record_audit_event(audit_spool.audit_event("salt-call", user, name, parameters, reply))
    elif job:
        user = str(job.get("user", ""))
        worker.record_audit_event(audit_spool.audit_event("salt", user, name, parameters, reply))
    return reply


def _nonce(job: Mapping[str, Any]) -> str:
    metadata = job.get("metadata")
    return str(metadata.get("nonce", "")) if isinstance(metadata, dict) else ""
