"""The errors that users get. Each says what is wrong, why, and what to do.

    MasterError
    ├── BadRequest      400  a parameter is invalid
    ├── Unauthorised    401  no token, or an unknown one
    ├── Forbidden       403  the caller's role, or the token's scopes, do not allow it
    ├── NotFound        404  no such VM or worker, or none that the caller may see
    ├── NameTaken       409  another VM has the name
    ├── Conflict        409  the verb does not fit the state of the VM
    ├── IdempotencyKeyInUse   409  the first request with this Idempotency-Key is not answered yet
    ├── IdempotencyKeyReused  422  the Idempotency-Key belongs to another request
    ├── Refused         409  no worker would accept it
    ├── ChangedMeanwhile      412  If-Match names a former version
    ├── PreconditionRequired  428  this change needs an If-Match
    ├── QuotaExceeded   403  above the quota of the owner
    ├── TooMany         429  too many requests at the same time
    ├── Busy            503  too many connections of all callers
    ├── BodyTooLarge    413  the body is larger than any request needs
    ├── TooLarge        507  no worker could ever hold it
    ├── NotDelivered    502  a notice did not reach its user
    ├── DatabaseFull    507  the disk of the master's database has no space left
    ├── DatabaseAway    503  the master's database does not answer
    ├── NotLeading      503  another master on the same database is the leader
    └── SaltError       503  salt-api does not answer, or answers something unexpected
        └── SaltDenied  503  salt-api refuses our account

A code is the contract's where it has one, so that a client gets the same word from every interface.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from worker_service.contract import Code
from worker_service.contract.uri_secrets import masked


class MasterError(Exception):
    """Base class. `code` is for programs, `http_status` for the API, `hint` says what to do, `str()` is the message.

    Secrets in the URIs of a message are masked.
    """

    code: str = Code.INTERNAL
    http_status: ClassVar[int] = 500
    hint: str = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(masked(message))
        self.hint = hint or self.hint


class BadRequest(MasterError):
    """One or more parameters are invalid; `fields` has (field, message) for each."""

    code = Code.BAD_REQUEST
    http_status = 400
    hint = "Correct these fields and send the request again. /docs lists every parameter."

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in fields))
        self.fields = tuple((masked(field), masked(message)) for field, message in fields)


class Unauthorised(MasterError):
    """The request has no token, or an unknown one."""

    code = "unauthorised"
    http_status = 401
    hint = "Send the header `Authorization: Bearer TOKEN`; the administrator's token is in the file `admin_token_file`."


class Forbidden(MasterError):
    """The role of the caller, or the scopes of the token, do not allow it."""

    code = "forbidden"
    http_status = 403
    hint = "Ask an administrator for another role."


class NotFound(MasterError):
    """No such VM or worker, or none that the caller may see."""

    code = Code.NOT_FOUND
    http_status = 404
    hint = "`saltern list` shows the names and uuids that exist."


class NameTaken(MasterError):
    """Another VM, not destroyed yet, has the name."""

    code = Code.NAME_TAKEN
    http_status = 409
    hint = "Choose another name, or destroy the VM that has it."


class Conflict(MasterError):
    """The verb does not fit the state of the VM."""

    code = Code.CONFLICT
    http_status = 409
    hint = "Check the current state of the VM, then try again."


class Refused(MasterError):
    """No worker would accept it; `code` is the worker's. The request changed nothing."""

    http_status = 409
    hint = "Nothing was changed. Correct the request, or ask the administrator of the workers."

    def __init__(self, message: str, code: str, hint: str = "") -> None:
        super().__init__(message, hint)
        self.code = code


class IdempotencyKeyInUse(MasterError):
    """The first request with this Idempotency-Key is in progress, or its master stopped during it."""

    code = "idempotency_key_in_use"
    http_status = 409
    hint = (
        "Send it again later: it is answered then, or carried out again a minute after it must have ended. "
        "Or check whether the change was made, and use a new key."
    )


class IdempotencyKeyReused(MasterError):
    """The Idempotency-Key was used for another request. This one changed nothing."""

    code = "idempotency_key_reused"
    http_status = 422
    hint = "Use a new key for each change, such as a UUID."


class ChangedMeanwhile(MasterError):
    """If-Match names a former version of the VM. The request changed nothing."""

    code = "changed_meanwhile"
    http_status = 412
    hint = "Read it again, check its changes, and send the change with the new ETag."


class PreconditionRequired(MasterError):
    """The change could overwrite another one, so the request must name the version that it changes."""

    code = "precondition_required"
    http_status = 428
    hint = "Send the ETag of your last GET as If-Match, or `If-Match: *` to overwrite any version."


class QuotaExceeded(MasterError):
    """The owner of the VM would exceed a quota. The message has the numbers."""

    code = "quota_exceeded"
    http_status = 403
    hint = "Destroy VMs that you no longer need, or ask an administrator for a larger quota."


class TooMany(MasterError):
    """Too many requests at the same time. A retry helps."""

    code = "too_many"
    http_status = 429
    hint = "Try again in a few seconds."

    def __init__(self, message: str, hint: str = "", *, retry_after_s: int = 1) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class Busy(MasterError):
    """There are too many connections of all callers. A retry helps."""

    code = "busy"
    http_status = 503
    hint = "Try again in a second."


class BodyTooLarge(MasterError):
    """The body is larger than any request needs. It was not read to its end."""

    code = Code.TOO_LARGE
    http_status = 413
    hint = "Send less."


class TooLarge(MasterError):
    """No known worker could ever hold it."""

    code = Code.NO_ROOM
    http_status = 507
    hint = "Ask for less, or add a larger worker."


class NotDelivered(MasterError):
    """A notice did not reach its user. The message has no secrets.

    `retry`: another try may help. `wait_s`: the time for which the receiver asked to be left alone.
    """

    code = "not_delivered"
    http_status = 502

    def __init__(self, message: str, *, retry: bool = True, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.retry = retry
        self.wait_s = wait_s


class DatabaseFull(MasterError):
    """The disk of the master's database is full. The request changed nothing. Reading and all VMs go on."""

    code = "database_full"
    http_status = 507
    hint = "Free space on the disk of `database_url`, then send it again. The master needs no restart."


class DatabaseAway(MasterError):
    """The master's database does not answer, or cannot read or write its disk. A retry helps after its repair."""

    code = "database_unavailable"
    http_status = 503
    hint = "Check `database_url`, its server and its disk; the master's log has the details. Then send it again."


class NotLeading(MasterError):
    """Another master on the same database is the leader now. Only the daemons get this error."""

    code = "not_leading"
    http_status = 503
    hint = "You need to do nothing: the other master continues."


class SaltError(MasterError):
    """salt-api does not answer, or answers something unexpected. A retry helps."""

    code = "salt_unavailable"
    http_status = 503
    hint = "Check that salt-master, salt-api and saltern-gate run, and `salt_api_url` in gate.toml."


class SaltDenied(SaltError):
    """salt-api refuses our account."""

    code = "salt_denied"
    hint = "In gate.toml, check `salt_api_username` and `salt_api_password_file`; on the Salt master, `external_auth`."


class SaltRequestTooLarge(SaltError):
    """The request is larger than salt-api takes. Less in one request helps."""

    code = Code.TOO_LARGE
    http_status = 413
    hint = (
        "Make it smaller, or raise `max_request_body_size` of salt-api on the Salt master and "
        "`salt_api_request_limit_kib` in gate.toml."
    )


NEVER_ARRIVED: Final = frozenset({SaltError.code, SaltDenied.code})
"""Problems by which a command did not reach any worker."""
