"""Who did what, through which door, and what came of it: the values. `store.audit` keeps them with the deed itself."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Literal

from master_service.planning.outcomes import Outcome

Door = Literal["api", "cli", "web", "salt", "salt-call", "facade", "master"]
"""api, cli, web: over HTTP, told apart by what the client says of itself. salt: seen on Salt's bus, asked for by
somebody else than this master. salt-call, facade: on a worker, which told of it. master: by itself."""

PAST_US: Final[tuple[Door, ...]] = ("salt", "salt-call", "facade")
"""Doors that lead to workers past this master."""

Kind = Literal["vm", "user", "token", "worker", "route", "image"]


@dataclass(frozen=True, kw_only=True, slots=True)
class By:
    """Who asks. `request_id` is in the answer's header X-Request-Id and in the log, too."""

    who: str
    door: Door = "api"
    request_id: str = ""
    address: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line of the audit. `target` is what a person calls it: a VM's or user's name, a token's id."""

    at: datetime
    by: By
    verb: str
    kind: Kind
    target: str
    uuid: str = ""
    generation: int = 0
    outcome: Outcome = Outcome.DONE
    detail: str = ""
    jid: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One line as it is kept."""

    id: int
    at: datetime
    who: str
    door: str
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


MASTER = By(who="saltern", door="master")
"""What the master does by itself."""

NOBODY = "nobody"
"""Whoever has not said who they are, or could not show it."""
