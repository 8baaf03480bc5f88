"""Permissions: one pure table over roles and routes. `api.protocol.auth` enforces it for every request.

A route without a row in `ROUTES` is refused to all. Each row says how far a role reaches: `NONE` (refused), `OWN` (the
caller's objects) or `ALL`. A route may name one object (`subject`). If the caller may not even read it, the answer is
404, as for a missing object, so that names do not leak. If the caller may read but not change it, the answer is 403.
Lists for a role with `OWN` contain only the caller's objects.

    admin     everything
    operator  every VM and worker, and the audit; no users, and only their own tokens
    user      their own VMs and tokens, and the images that they may know; no workers or plans, which show others' VMs
    viewer    reads every VM and worker, and changes only their own password and tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, IntEnum, StrEnum
from typing import Final


class Role(StrEnum):
    """The role of a user."""

    ADMIN = "admin"
    OPERATOR = "operator"
    USER = "user"
    VIEWER = "viewer"


class Scope(StrEnum):
    """The scope of a token, within the role of its owner."""

    READ = "read"
    OPERATE = "operate"
    CONSOLE = "console"
    ACCOUNTS = "accounts"
    """Users, tokens, passwords. Version 0.1 called it `people`, and tokens of that version still have the word."""

    @classmethod
    def _missing_(cls, value: object) -> Scope | None:
        return cls.ACCOUNTS if value == "people" else None


class Subject(StrEnum):
    """The kind of object that a route names in its path."""

    VM = "vm"
    USER = "user"
    TOKEN = "token"  # noqa: S105 - a word, not a secret
    OPERATION = "operation"


class Reach(IntEnum):
    """How far a role reaches over a route."""

    NONE = 0
    OWN = 1
    ALL = 2


class Verdict(Enum):
    """The decision about a request."""

    ALLOWED = "allowed"
    FORBIDDEN = "forbidden"
    HIDDEN = "hidden"
    """The answer is the same as for a missing object."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One row: how far each role reaches, which scope a token needs, and the object that the path names.

    A `public` route needs no token. It checks a password or a ticket by itself.
    """

    admin: Reach = Reach.ALL
    operator: Reach = Reach.NONE
    user: Reach = Reach.NONE
    viewer: Reach = Reach.NONE
    scope: Scope = Scope.READ
    subject: Subject | None = None
    public: bool = False

    def reach(self, role: Role) -> Reach:
        """Return how far this role reaches."""
        found: Reach = getattr(self, role.value)
        return found


_ALL, _OWN = Reach.ALL, Reach.OWN

PUBLIC: Final = Rule(public=True)
SEES_VMS: Final = Rule(operator=_ALL, user=_OWN, viewer=_ALL)
"""Lists and streams about VMs: the handler omits VMs that `Caller.sees` excludes."""
SEES_VM: Final = replace(SEES_VMS, subject=Subject.VM)
CREATES_VMS: Final = Rule(operator=_ALL, user=_OWN, scope=Scope.OPERATE)
CHANGES_VM: Final = replace(CREATES_VMS, subject=Subject.VM)
USES_CONSOLE: Final = replace(CHANGES_VM, scope=Scope.CONSOLE)
DOWNLOADS_DISK: Final = Rule(user=_OWN, scope=Scope.OPERATE, subject=Subject.VM)
"""A disk has all secrets of its guest: only its owner reads it, and administrators."""
SEES_WORKERS: Final = Rule(operator=_ALL, viewer=_ALL)
"""Workers, caches, plans and metrics, which show the VMs of all users."""
CHANGES_WORKERS: Final = Rule(operator=_ALL, scope=Scope.OPERATE)
SEES_OWN: Final = Rule(operator=_OWN, user=_OWN, viewer=_OWN)
CHANGES_OWN: Final = replace(SEES_OWN, scope=Scope.ACCOUNTS)
CHANGES_USERS: Final = Rule(scope=Scope.ACCOUNTS)
ENROLLS_WORKERS: Final = Rule(scope=Scope.OPERATE)
ADOPTS_VMS: Final = Rule(scope=Scope.OPERATE)
"""Gives a VM to any account."""

ROUTES: Final[Mapping[str, Rule]] = {
    "GET /healthz": PUBLIC,
    "GET /readyz": PUBLIC,
    "GET /version": PUBLIC,
    "GET /schemas/vms.json": PUBLIC,
    "GET /vmachines": SEES_VMS,
    "POST /vmachines": CREATES_VMS,
    "GET /vmachines/{id_or_name}": SEES_VM,
    "PATCH /vmachines/{id_or_name}": CHANGES_VM,
    "DELETE /vmachines/{id_or_name}": CHANGES_VM,
    "POST /vmachines/{id_or_name}/modify": CHANGES_VM,
    "POST /vmachines/{id_or_name}/start": CHANGES_VM,
    "POST /vmachines/{id_or_name}/shutdown": CHANGES_VM,
    "POST /vmachines/{id_or_name}/suspend": CHANGES_VM,
    "POST /vmachines/{id_or_name}/resume": CHANGES_VM,
    "POST /vmachines/{id_or_name}/destroy": CHANGES_VM,
    "POST /vmachines/{id_or_name}/save_retry": CHANGES_VM,
    "GET /vmachines/{id_or_name}/history": SEES_VM,
    "POST /vmachines/{id_or_name}/console": USES_CONSOLE,
    "GET /vmachines/{id_or_name}/disks/{disk}": DOWNLOADS_DISK,
    "WEBSOCKET /console/{uuid}/screen": PUBLIC,  # the ticket opens it
    "GET /console/{uuid}": PUBLIC,
    "GET /console/static/{path:path}": PUBLIC,
    "GET /console/novnc/{path:path}": PUBLIC,
    "GET /plan": SEES_WORKERS,
    "GET /events": SEES_VMS,
    "GET /salt": SEES_WORKERS,
    "GET /workers": SEES_WORKERS,
    "GET /workers/{worker_id}": SEES_WORKERS,
    "GET /notices": SEES_VMS,
    "POST /notices/ack": CREATES_VMS,  # only those that the caller sees
    "GET /audit": Rule(operator=_ALL, user=_OWN, viewer=_OWN),
    "POST /workers/{worker_id}/drain": CHANGES_WORKERS,
    "POST /workers/{worker_id}/undrain": CHANGES_WORKERS,
    "POST /workers/{worker_id}/fence": CHANGES_WORKERS,
    "POST /workers/{worker_id}/enroll": ENROLLS_WORKERS,
    "POST /workers/{worker_id}/unenroll": ENROLLS_WORKERS,
    "POST /workers/{worker_id}/vmachines/{uuid}/adopt": ADOPTS_VMS,
    "GET /operations": SEES_VMS,
    "GET /operations/{operation_id}": replace(SEES_VMS, subject=Subject.OPERATION),
    "GET /images": SEES_VMS,
    "GET /images/copies": SEES_WORKERS,
    "POST /images": CHANGES_WORKERS,
    "POST /images/pin": CHANGES_WORKERS,
    "POST /images/unpin": CHANGES_WORKERS,
    "POST /images/cancel": CHANGES_WORKERS,
    "POST /images/clean": CHANGES_WORKERS,
    "GET /metrics": SEES_WORKERS,
    "GET /users": SEES_OWN,
    "POST /users": CHANGES_USERS,
    "GET /users/{name}": replace(SEES_OWN, subject=Subject.USER),
    "GET /users/{name}/quota": replace(SEES_OWN, subject=Subject.USER),
    "PATCH /users/{name}": replace(CHANGES_USERS, subject=Subject.USER),
    "DELETE /users/{name}": replace(CHANGES_USERS, subject=Subject.USER),
    "GET /users/{name}/contact": replace(SEES_OWN, subject=Subject.USER),
    "PATCH /users/{name}/contact": replace(CHANGES_OWN, subject=Subject.USER),
    "POST /users/{name}/contact/verify": replace(CHANGES_OWN, subject=Subject.USER),
    "POST /users/{name}/contact/test": replace(CHANGES_OWN, subject=Subject.USER),
    "PUT /users/{name}/password": replace(CHANGES_OWN, subject=Subject.USER),
    "POST /users/{name}/tokens": replace(CHANGES_OWN, subject=Subject.USER),
    "POST /tokens": PUBLIC,
    "GET /tokens": SEES_OWN,
    "GET /tokens/{token_id}": replace(SEES_OWN, subject=Subject.TOKEN),
    "DELETE /tokens/{token_id}": replace(CHANGES_OWN, subject=Subject.TOKEN),
}
"""METHOD and path below /api/v1 -> rule. For a websocket the method is WEBSOCKET."""

PATH_PARAMETERS: Final[Mapping[Subject, str]] = {
    Subject.VM: "id_or_name",
    Subject.USER: "name",
    Subject.TOKEN: "token_id",
    Subject.OPERATION: "operation_id",
}
"""The path parameter that names each subject."""

READ_RULES: Final[Mapping[Subject, Rule]] = {
    Subject.VM: SEES_VM,
    Subject.USER: replace(SEES_OWN, subject=Subject.USER),
    Subject.TOKEN: replace(SEES_OWN, subject=Subject.TOKEN),
    Subject.OPERATION: replace(SEES_VMS, subject=Subject.OPERATION),
}
"""The rule for reading one such object. For all other callers it does not exist."""


def verdict(rule: Rule, role: Role, *, own: bool) -> Verdict:
    """Decide about a request. `own` says whether the caller owns the subject, if the rule has one."""
    if rule.subject is None:
        return Verdict.ALLOWED if rule.reach(role) is not Reach.NONE else Verdict.FORBIDDEN
    if _covers(rule, role, own=own):
        return Verdict.ALLOWED
    return Verdict.FORBIDDEN if _covers(READ_RULES[rule.subject], role, own=own) else Verdict.HIDDEN


def _covers(rule: Rule, role: Role, *, own: bool) -> bool:
    reach = rule.reach(role)
    return reach is Reach.ALL or (reach is Reach.OWN and own)
