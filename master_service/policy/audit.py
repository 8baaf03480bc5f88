"""Who did what, through which door, and what came of it: the values. `store.audit` keeps them with the deed itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from master_service.planning.outcomes import Outcome

Interface = Literal["api", "cli", "web", "salt", "salt-call", "worker-api", "master"]
"""api, cli, web: over HTTP, told apart by what the client says of itself. salt: seen on Salt's bus, asked for by
somebody else than this master. salt-call, facade: on a worker, which told of it. master: by itself."""

EXTERNAL_INTERFACES: Final[tuple[Interface, ...]] = ("salt", "salt-call", "worker-api")
"""Doors that lead to workers past this master."""

Kind = Literal["vm", "user", "token", "worker", "route", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Actor:
    """Who asks. `request_id` is in the answer's header X-Request-Id and in the log, too."""

    name: str
    interface: Interface = "api"
    request_id: str = ""
    address: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditEntry:
    """One line of the audit. `target` is what a person calls it: a VM's or user's name, a token's id."""

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
        """Whether it requests a change whose outcome may be known later. A login is one: it is counted first."""
        return (self.kind == "vm" and self.outcome is not Outcome.DENIED) or self.verb == "login"


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditRecord:
    """One line as it is kept."""

    id: int
    at: datetime
    actor: str
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
"""What the master does by itself."""

ANONYMOUS = "nobody"
"""Whoever has not said who they are, or could not show it."""
