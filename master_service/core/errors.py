"""The errors that people meet. Each says what is wrong, why, and what to do.

    MasterError
    ├── BadRequest      400  a parameter makes no sense
    ├── Unauthorised    401  no token, or one that nobody has
    ├── Forbidden       403  the caller's role, or the token's scopes, do not allow it
    ├── NotFound        404  no such VM or worker, or none that the caller may see
    ├── NameTaken       409  another VM has the name
    ├── Conflict        409  the verb does not fit what the VM is, or somebody changed it meanwhile
    ├── KeyInUse        409  the first request with this Idempotency-Key is not answered yet
    ├── KeyReused       422  the Idempotency-Key belongs to another request
    ├── ChangedMeanwhile      412  If-Match names a version that it has no more
    ├── PreconditionRequired  428  this change needs an If-Match
    ├── QuotaExceeded   403  more than its owner may have
    ├── TooMany         429  too much of this at once; a retry helps
    ├── TooLarge        507  no worker could ever hold it
    ├── NotDelivered    502  a notice did not reach whoever it is for
    ├── DatabaseFull    507  the disk of the master's database has no space left
    ├── DatabaseAway    503  the master's database does not answer
    ├── NotLeading      503  another master on the same database does the work now
    └── SaltError       503  salt-api does not answer, or not as it should
        └── SaltDenied  503  salt-api refuses our account

Codes are the contract's where it has one, so that a client reads the same word from every door.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Final

from worker_service.contract import Code


class MasterError(Exception):
    """Base of all. `code` is for programs, `http_status` for the API, `hint` says what to do; `str()` is for people."""

    code: ClassVar[str] = Code.INTERNAL
    http_status: ClassVar[int] = 500
    hint: str = ""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint or self.hint


class BadRequest(MasterError):
    """One or more parameters make no sense; `fields` has (field, message) for each."""

    code = Code.BAD_REQUEST
    http_status = 400
    hint = "Correct the fields that are named, and send it again. /docs lists every parameter."

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        super().__init__("; ".join(f"{field}: {message}" for field, message in fields))
        self.fields = tuple(fields)


class Unauthorised(MasterError):
    """The request has no token, or one that nobody has."""

    code = "unauthorised"
    http_status = 401
    hint = "Send the header `Authorization: Bearer TOKEN`; the administrator's token is in the file `admin_token_file`."


class Forbidden(MasterError):
    """The caller's role, or the scopes of the token that was sent, do not allow it."""

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
    """The verb does not fit what the VM is, or somebody changed it meanwhile."""

    code = Code.CONFLICT
    http_status = 409
    hint = "Look at the VM as it is now, and try again."


class IdempotencyKeyInUse(MasterError):
    """The first request with this Idempotency-Key is still being worked on, or its master stopped in the middle."""

    code = "idempotency_key_in_use"
    http_status = 409
    hint = (
        "Send it again in a while: it is answered then, or carried out anew a minute after it must have ended. "
        "Or look whether the change was made, and take a new key."
    )


class IdempotencyKeyReused(MasterError):
    """The Idempotency-Key was used for another request. Nothing was changed."""

    code = "idempotency_key_reused"
    http_status = 422
    hint = "Take a new key for each change; a UUID will do."


class ChangedMeanwhile(MasterError):
    """If-Match names a version that the VM does not have any more. Nothing was changed."""

    code = "changed_meanwhile"
    http_status = 412
    hint = "Read it again, look at what became of it, and send the change with the new ETag."


class PreconditionRequired(MasterError):
    """The change would overwrite what somebody else may have changed: it must say which version it is meant for."""

    code = "precondition_required"
    http_status = 428
    hint = "Send the ETag of your last GET as If-Match; `If-Match: *` if whatever others changed does not matter."


class QuotaExceeded(MasterError):
    """More than the owner of the VM may have; the message has the numbers."""

    code = "quota_exceeded"
    http_status = 403
    hint = "Destroy what is not needed any more, or ask an administrator for a larger quota."


class TooMany(MasterError):
    """Too much of this at once. A retry helps."""

    code = "too_many"
    http_status = 429
    hint = "Try again in a few seconds."


class TooLarge(MasterError):
    """No worker that is known could ever hold it."""

    code = Code.NO_ROOM
    http_status = 507
    hint = "Ask for less, or add a larger worker."


class NotDelivered(MasterError):
    """A notice did not reach whoever it is for; its text has no secrets in it. `retry`: another try may help."""

    code = "not_delivered"
    http_status = 502

    def __init__(self, message: str, *, retry: bool = True) -> None:
        super().__init__(message)
        self.retry = retry


class DatabaseFull(MasterError):
    """The disk of the master's database has no space left. Nothing was changed; reading goes on, and so do all VMs."""

    code = "database_full"
    http_status = 507
    hint = "Free space where `database_url` is, and send it again: the master needs no restart."


class DatabaseAway(MasterError):
    """The master's database does not answer, or cannot read or write its disk. A retry helps once it does again."""

    code = "database_unavailable"
    http_status = 503
    hint = "Check `database_url`, its server and its disk; the master's log says more. Then send it again."


class NotLeading(MasterError):
    """Another master on the same database does the work now. Nobody's request meets it: only the daemons do."""

    code = "not_leading"
    http_status = 503
    hint = "Nothing is to be done: that master goes on where this one was."


class SaltError(MasterError):
    """salt-api does not answer, or not in the shape that it should. A retry helps."""

    code = "salt_unavailable"
    http_status = 503
    hint = "Check that salt-master and salt-api run, and `salt_api_url`."


class SaltDenied(SaltError):
    """salt-api refuses our account."""

    code = "salt_denied"
    hint = "Check `salt_api_username`, `salt_api_password_file` and the Salt master's `external_auth`."


NEVER_ARRIVED: Final = frozenset({SaltError.code, SaltDenied.code})
"""Problems of a command that are Salt's: no worker has said anything."""
