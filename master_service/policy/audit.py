"""Audit entries as values. `store.audit` writes each in the transaction of the act itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from master_service.planning.outcomes import Outcome

Interface = Literal["api", "cli", "web", "salt", "salt-call", "worker-api", "master"]
"""api, cli, web: over HTTP; the client says which. salt: a job on Salt's bus that this master did not send.
salt-call, worker-api: on a worker, which reported it. master: by the master itself."""

EXTERNAL_INTERFACES: Final[tuple[Interface, ...]] = ("salt", "salt-call", "worker-api")
"""Interfaces that reach workers without this master."""

Kind = Literal["vm", "user", "token", "worker", "route", "image", "notice"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """The author of an act. `request_id` is also in the answer's header X-Request-Id and in the log.

    `account_id`: of the author's account; empty if the author has none here.
    """

    name: str
    account_id: str = ""
    interface: Interface = "api"
    request_id: str = ""
    address: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """A new audit entry. `target` is the name of a VM or account, or the id of a token."""

    at: datetime
    actor: Actor
    verb: str
    kind: Kind
    target: str
    uuid: str = ""
    generation: int = 0
    outcome: Outcome = Outcome.DONE
    detail: str = ""
    jid: str = ""

    @property
    def is_operation(self) -> bool:
        """Whether the outcome may be known later."""
        return self.kind == "vm" and self.outcome is not Outcome.DENIED


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditRecord:
    """A stored audit entry, with the outcome as it is now."""

    id: int
    at: datetime
    actor: str
    actor_id: str
    interface: str
    verb: str
    kind: str
    uuid: str
    name: str
    generation: int
    outcome: str
    detail: str
    jid: str
    request_id: str
    address: str


MASTER = Actor(name="saltern", interface="master")
"""The actor of what the master does by itself."""

ANONYMOUS = "nobody"
"""The actor of requests without valid credentials."""
