"""What the master believes of its workers: the keys of the enrolled ones, and the newest of each one's events.

Every minion can write to Salt's bus in any name. So a reply counts only if its worker signed it for our request, and an
event only if its worker signed it after all that is known of that worker. Everything else is counted, and shows nothing
about a VM.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any, Final

from master_service.saltapi.signatures import Doubt, NotBelieved, verify
from worker_service.contract.signatures import Signature

_LOOK_AGAIN_S: Final = 30.0
"""At most this often, a message that is signed but not new makes the master ask its worker."""


class WorkerTrust:
    """The keys, and what follows from them. `doubts` counts refused messages by worker and reason, for the metrics.

    `keys` are those of the enrolled workers by their ids. Each poll reads them anew.
    """

    def __init__(self) -> None:
        self.keys: Mapping[str, str] = {}
        self.doubts: Counter[tuple[str, Doubt]] = Counter()
        self._newest: dict[tuple[str, str], int] = {}
        """The number of each worker's newest event that was believed, or of its last event before its first list."""
        self._heard: set[tuple[str, str]] = set()
        self._looked: dict[str, float] = {}

    def believe_reply(self, worker: str, answer: object, nonce: str) -> Mapping[str, Any]:
        """Return a worker's answer to the request with this nonce. Raises NotBelieved."""
        return self._checked(worker, answer, nonce)[0]

    def believe_list(self, worker: str, answer: object, nonce: str) -> Mapping[str, Any]:
        """Return a worker's answer to `list`. The first one shows where its events stand. Raises NotBelieved."""
        answer, signature = self._checked(worker, answer, nonce)
        self._newest.setdefault(self._of(worker), signature.counter)
        return answer

    def believe_event(self, worker: str, data: object, tag: str) -> Mapping[str, Any] | None:
        """Return the data of a worker's event, or None for its newest one again. Raises NotBelieved.

        No event from before the first list of a worker is known to be new.
        """
        data, signature = self._checked(worker, data, tag)
        newest = self._newest.get(self._of(worker))
        if newest is None or (signature.counter < newest and self._of(worker) not in self._heard):
            raise NotBelieved(Doubt.EARLY)
        if signature.counter < newest:
            raise self.doubt(worker, Doubt.REPLAYED)
        if signature.counter == newest:
            return None  # Salt sends an event again if its acknowledgement is lost
        self._newest[self._of(worker)] = signature.counter
        self._heard.add(self._of(worker))
        return data

    def should_look_again(self, worker: str) -> bool:
        """Return whether to ask a worker because of a message of its own that is not known to be new."""
        now = time.monotonic()
        if worker not in self.keys or now - self._looked.get(worker, -_LOOK_AGAIN_S) < _LOOK_AGAIN_S:
            return False
        self._looked[worker] = now
        return True

    def doubt(self, worker: str, doubt: Doubt) -> NotBelieved:
        """Count a message that is refused for another reason, and return the error."""
        self.doubts[worker if worker in self.keys else "", doubt] += 1
        return NotBelieved(doubt)

    def _checked(self, worker: str, data: object, subject: str) -> tuple[dict[str, Any], Signature]:
        try:
            signature = verify(data, subject, worker, self.keys.get(worker, ""))
        except NotBelieved as err:
            raise self.doubt(worker, err.doubt) from err
        assert isinstance(data, dict)  # noqa: S101 - `verify` found a field in it
        return data, signature

    def _of(self, worker: str) -> tuple[str, str]:
        """Return the key of the counters: a worker that is enrolled again counts from its new beginning."""
        return worker, self.keys[worker]
