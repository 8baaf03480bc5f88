"""Images in the caches of workers: one Salt job for several workers, and the answer of each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from master_service.core.errors import NotFound, SaltError
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call
from worker_service.contract.uri_secrets import masked, masked_uri

Verb = Literal["prefetch", "pin", "unpin"]
_ANSWER_S: Final = 15.0
_MAX_MESSAGE: Final = 500
_MAX_TARGET: Final = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer of one worker."""

    worker: str
    success: bool
    message: str


class ImageService:
    """Carries out requests about the image caches of workers."""

    def __init__(self, context: Context) -> None:
        self._context = context

    async def select_workers(self, worker_ids: Sequence[str] | None) -> list[str]:
        """Return these workers, sorted, or all that answer. Raises NotFound."""
        known = await self._context.store.queries.workers()
        if worker_ids is None:
            return [worker.id for worker in known if worker.unreachable_since is None]
        if absent := sorted(set(worker_ids) - {worker.id for worker in known}):
            raise NotFound(f"There is no worker {absent[0]!r}.", "`saltern workers` shows those that ever answered.")
        return sorted(set(worker_ids))

    async def ask(
        self, verb: Verb, uri: str, workers: Sequence[str], actor: Actor, *, pin: bool = False
    ) -> list[Answer]:
        """Send one job to these workers, and return the answer of each. Raises SaltError.

        A worker that does not answer in time may still do it. In a dry run the answers say what would be sent.
        """
        answers = {
            worker: Answer(worker=worker, success=True, message=f"It would be asked to {verb} it.")
            for worker in workers
        }
        if workers:
            async with self._context.store.database.unit_of_work() as unit:
                unit.after_commit(partial(self._send, verb, uri, actor, answers, pin=pin))
        return list(answers.values())

    async def sizes(self, workers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Ask these workers in one job; return `size` in bytes and `pinned` by URI. Raises SaltError."""
        replies = await call(self._context, workers, "vmachines.cache", {}, _ANSWER_S) if workers else {}
        found: dict[str, dict[str, Any]] = {}
        for worker, reply in replies.items():
            for entry in _entries(reply):
                for uri in map(masked_uri, entry["uris"]):  # a worker of version 0.1 has secrets there
                    known = found.setdefault(uri, {"size": entry["size"], "pinned": []})
                    if entry.get("pinned") is True:
                        known["pinned"].append(worker)
        return found

    async def _send(self, verb: Verb, uri: str, actor: Actor, answers: dict[str, Answer], *, pin: bool) -> None:
        """Send the job and replace `answers` by those of the workers."""
        kwarg: dict[str, Any] = {"uri": uri} | ({"pin": True} if pin else {})
        try:
            replies = await call(self._context, list(answers), f"vmachines.cache_{verb}", kwarg, _ANSWER_S)
        except SaltError as err:
            await self._audit(verb, uri, actor, Outcome.REFUSED, str(err))
            raise
        answers.update({worker: _answer(worker, replies.get(worker)) for worker in answers})
        refused = [answer for answer in answers.values() if not answer.success]
        outcome = Outcome.REFUSED if len(refused) == len(answers) else Outcome.DONE
        accepted = ", ".join(answer.worker for answer in answers.values() if answer.success)
        detail = "; ".join([accepted, *(f"{answer.worker}: {answer.message}" for answer in refused)]).strip("; ")
        await self._audit(verb, uri, actor, outcome, detail)

    async def _audit(self, verb: Verb, uri: str, actor: Actor, outcome: Outcome, detail: str) -> None:
        at = self._context.clock()
        entry = AuditEntry(
            at=at,
            actor=actor,
            verb=verb,
            kind="image",
            target=uri[:_MAX_TARGET],
            outcome=outcome,
            detail=detail[:_MAX_MESSAGE],
        )
        await self._context.store.audit.add(entry)


def _answer(worker: str, reply: object) -> Answer:
    """Read the reply of a worker, which is untrusted input."""
    match reply:
        case {"success": bool() as success, "message": str() as message}:
            return Answer(worker=worker, success=success, message=masked(message)[:_MAX_MESSAGE])
        case None | False | "":
            return Answer(worker=worker, success=False, message="It did not answer in time; it may still do it.")
        case _:
            return Answer(worker=worker, success=False, message="Its answer is no reply of vmachines.")


def _entries(reply: object) -> list[dict[str, Any]]:
    match reply:
        case {"images": list() as images}:
            return [image for image in images if _is_entry(image)]
        case _:
            return []


def _is_entry(image: object) -> bool:
    match image:
        case {"uris": list() as uris, "size": int()}:
            return all(isinstance(uri, str) for uri in uris)
        case _:
            return False
