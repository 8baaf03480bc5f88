"""One tree of errors. A message says what failed, why, and what to do; `code` is the same for programs.

SalternError            base; never raised itself
├── BadRequest          the request is malformed
├── Refused             the request is not allowed now: conflict, stale generation, policy, no room, unsupported
├── NotFound            this worker has no such VM
├── BadImage            the bytes are not an image that is safe to boot
├── TransferFailed      an image could not be fetched or saved; `retry` says whether another try may succeed
├── HypervisorError     the hypervisor is unavailable or refused a call
└── TimedOut            the time limit is over
"""

from __future__ import annotations

from worker_service.contract import HTTP_STATUS, Code
from worker_service.contract.uri_secrets import masked


class SalternError(Exception):
    """Base of all errors that a user may see. Secrets in the URIs of its message are masked.

    `wait_s` is the time for which a server asked to be left alone. The next try comes no earlier.
    """

    code: Code = Code.INTERNAL
    retry: bool = False

    def __init__(
        self, message: str, *, code: Code | None = None, retry: bool | None = None, wait_s: float = 0.0
    ) -> None:
        super().__init__(masked(message))
        self.code = code or type(self).code
        self.retry = type(self).retry if retry is None else retry
        self.wait_s = wait_s

    @property
    def http_status(self) -> int:
        """Return the HTTP status of the code."""
        return HTTP_STATUS[self.code]


class BadRequest(SalternError):
    """The request is malformed: a type, a range, a pattern, an unknown parameter."""

    code = Code.BAD_REQUEST


class Refused(SalternError):
    """The request is not allowed in the present state; the code names the rule."""

    code = Code.CONFLICT


class NotFound(SalternError):
    """This worker has no VM of that uuid or name."""

    code = Code.NOT_FOUND


class BadImage(SalternError):
    """The fetched bytes are not an image that is safe to boot."""

    code = Code.BAD_IMAGE


class TransferFailed(SalternError):
    """An image could not be fetched or saved."""

    code = Code.FETCH_FAILED
    retry = True


class DiskInUse(SalternError):
    """A process that is not the VM's may write to its disk. It counts as no try: the step waits until that ends."""

    code = Code.CONFLICT


class HypervisorError(SalternError):
    """libvirt is unavailable, or refused a call."""

    code = Code.HYPERVISOR
    retry = True


class TimedOut(SalternError):
    """The time limit is over; the work may still go on."""

    code = Code.TIMEOUT
    retry = True
