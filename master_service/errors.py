"""The errors that people meet. Each says what is wrong, why, and what to do.

    MasterError
    ├── BadRequest      400  a parameter makes no sense
    ├── Unauthorised    401  no token, or one that nobody has
    ├── NotFound        404  no such VM or worker
    ├── NameTaken       409  another VM has the name
    ├── Conflict        409  the verb does not fit what the VM is, or somebody changed it meanwhile
    ├── TooLarge        507  no worker could ever hold it
    └── SaltError       503  salt-api does not answer, or not as it should
        └── SaltDenied  503  salt-api refuses our account

Codes are the contract's where it has one, so that a client reads the same word from every door.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

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


class NotFound(MasterError):
    """No such VM or worker."""

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


class TooLarge(MasterError):
    """No worker that is known could ever hold it."""

    code = Code.NO_ROOM
    http_status = 507
    hint = "Ask for less, or add a larger worker."


class SaltError(MasterError):
    """salt-api does not answer, or not in the shape that it should. A retry helps."""

    code = "salt_unavailable"
    http_status = 503
    hint = "Check that salt-master and salt-api run, and `salt_api_url`."


class SaltDenied(SaltError):
    """salt-api refuses our account."""

    code = "salt_denied"
    hint = "Check `salt_api_username`, `salt_api_password_file` and the Salt master's `external_auth`."
