"""Calls of functions on workers whose answers the caller waits for."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from typing import Any, Final

from master_service.runtime.context import Context
from master_service.saltapi.signatures import NotBelieved
from master_service.saltapi.untrusted import sanitize_text

_NO_ANSWER: Final = "Minion did not return"
"""Salt's text in place of a missing answer. Source: salt/client/__init__.py of 3008.3."""


def is_silence(answer: object) -> bool:
    """Return whether Salt itself says that a minion has not answered."""
    return answer is False or answer == {} or (isinstance(answer, str) and answer.startswith(_NO_ANSWER))


def new_nonce() -> str:
    """Return a number that no other request has. The worker's signature covers it."""
    return secrets.token_hex(16)


async def call(
    context: Context, workers: Sequence[str], fun: str, kwarg: Mapping[str, Any], timeout_s: float
) -> dict[str, Mapping[str, Any]]:
    """Call a function on these workers; return the answers within `timeout_s` that they signed. Raises SaltError.

    An answer that is not believed becomes a failure that says so. Silent workers are missing.
    """
    context.trust.keys = await context.store.workers.keys()
    nonce = new_nonce()
    replies: dict[str, Mapping[str, Any]] = {}
    for worker, answer in (await context.salt.call(workers, fun, kwarg, timeout_s, nonce)).items():
        if worker not in workers or not answer or is_silence(answer):
            continue
        try:
            replies[worker] = context.trust.believe_reply(worker, answer, nonce)
        except NotBelieved as err:
            # A worker that cannot load its modules returns a sentence, which it cannot sign.
            last = sanitize_text(answer).strip().splitlines()[-1:] if isinstance(answer, str) else []
            message = f"An answer in the name of {worker} {err}" + (f": {last[0][:300]}" if last else ".")
            replies[worker] = {"success": False, "message": message, "code": "not_believed"}
    return replies
