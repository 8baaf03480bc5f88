"""One tree of errors. A message says what failed, why, and what to do; `code` says it to programs.

SalternError            base; never raised itself
├── BadRequest          the request cannot be understood
├── Refused             understood and not allowed now: conflict, stale generation, policy, no room, unsupported
├── NotFound            no such VM here
├── BadImage            the bytes are not an image that is safe to boot
├── TransferFailed      fetching or saving did not work; `retry` says whether another try may
├── HypervisorError     the hypervisor is away or said no
└── TimedOut            waited as long as agreed
"""

from __future__ import annotations

from worker_service.contract import HTTP_STATUS, Code


class SalternError(Exception):
    """Base of all errors that a user may see."""

    code: Code = Code.INTERNAL
    retry: bool = False

    def __init__(self, message: str, *, code: Code | None = None, retry: bool | None = None) -> None:
        super().__init__(message)
        self.code = code or type(self).code
        self.retry = type(self).retry if retry is None else retry

    @property
    def http_status(self) -> int:
        """The HTTP status that goes with the code."""
        return HTTP_STATUS[self.code]


class BadRequest(SalternError):
    """The request cannot be understood: a type, a range, a pattern, a parameter nobody knows."""

    code = Code.BAD_REQUEST


class Refused(SalternError):
    """Understood, and not allowed in the present state; the code says which rule."""

    code = Code.CONFLICT


class NotFound(SalternError):
    """No VM of that uuid or name on this worker."""

    code = Code.NOT_FOUND


class BadImage(SalternError):
    """What was fetched is not an image that is safe to boot."""

    code = Code.BAD_IMAGE


class TransferFailed(SalternError):
    """An image could not be fetched or saved."""

    code = Code.FETCH_FAILED
    retry = True


class HypervisorError(SalternError):
    """libvirt is away, or refused."""

    code = Code.HYPERVISOR
    retry = True


class TimedOut(SalternError):
    """The agreed time is over; the work may still go on."""

    code = Code.TIMEOUT
    retry = True
