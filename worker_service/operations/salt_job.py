"""The answer of a verb to a Salt job, or to `salt-call`: audited, and signed if a master wants that.

A master puts a nonce into the metadata of its jobs. It audits its own requests by itself.

A master needs the tombstones of a list. It does not request them, because a worker of version 0.2 would refuse a list
with a parameter. The metadata of its job tells who sent it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from worker_service.operations import verbs
from worker_service.operations.common import Reply
from worker_service.state import audit_spool
from worker_service.state.context import WorkerContext

_OF_A_MASTER: Final = frozenset({"nonce", "mark"})
"""Fields in the metadata of a master's jobs. Masters of version 0.2 mark their polls, and have no nonce."""


def answer(
    worker: WorkerContext,
    verb: Callable[..., Reply],
    parameters: Mapping[str, Any],
    job: Mapping[str, Any],
    options: Mapping[str, Any],
) -> Reply:
    """Return the reply. `job`: as Salt's minion got it, empty for other callers; `options`: those of the minion."""
    metadata = job.get("metadata")
    marks: Mapping[str, Any] = metadata if isinstance(metadata, dict) else {}
    nonce = str(marks.get("nonce", ""))
    if verb is verbs.list_ and marks.keys() & _OF_A_MASTER:
        parameters = {**parameters, "tombstones": True}
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
