"""Images in the caches of workers: one Salt job for several workers, and the answer of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

from master_service.core.errors import NotFound, SaltError
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.policy.images import Copy, cleaned, copies_of, copy_on
from master_service.runtime.context import Context
from master_service.runtime.worker_calls import call
from worker_service.contract.uri import parse
from worker_service.contract.uri_secrets import masked, masked_uri

Verb = Literal["prefetch", "cancel", "pin", "unpin"]
_PINNED: Final = "pinned"
_IS_PIN: Final = (("pin", ""), ("prefetch", _PINNED))
"""Verbs of audit entries that pin an image, with the beginning of their detail."""
_ANSWER_S: Final = 15.0
_MAX_MESSAGE: Final = 500
_MAX_CODE: Final = 32
_MAX_TARGET: Final = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The answer of one worker."""

    worker: str
    success: bool
    message: str
    code: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cleaned:
    """The images that one worker removed, or would remove: `uris` and `size` of each."""

    answer: Answer
    images: tuple[dict[str, Any], ...]


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

    async def copies(self, workers: Sequence[str]) -> list[Copy]:
        """Ask these workers in one job, and return what they have and fetch. Raises SaltError."""
        replies = await self._caches(workers)
        return [copy for worker in workers for copy in copies_of(worker, replies.get(worker))]

    async def copies_of(self, uri: str, workers: Sequence[str]) -> list[Copy]:
        """Ask these workers for one image; return its state on each. Raises SaltError."""
        replies, shown = await self._caches(workers), masked_uri(parse(uri).text)
        return [copy_on(worker, replies.get(worker), shown) for worker in workers]

    async def pinned_by(self, uris: Collection[str]) -> dict[str, str]:
        """Return who last pinned these images through the master, by URI."""
        return await self._context.store.audit.newest_actors("image", _IS_PIN, uris)

    async def clean(self, workers: Sequence[str], actor: Actor) -> list[Cleaned]:
        """Remove the unused images on these workers, and return what each removed. Raises SaltError.

        In a dry run the workers are asked what they would remove.
        """
        database = self._context.store.database
        preview = database.is_in_unit
        if preview:
            await database.end_dry_run()
        kwarg = {"preview": True} if preview else {}
        replies = await call(self._context, workers, "vmachines.cache_clean", kwarg, _ANSWER_S) if workers else {}
        found = [
            Cleaned(answer=_answer(worker, replies.get(worker)), images=cleaned(replies.get(worker)))
            for worker in workers
        ]
        if not preview:
            removed = {uri for one in found for image in one.images for uri in image["uris"]}
            done = [one.answer for one in found if one.answer.success]
            outcome = Outcome.DONE if done else Outcome.REFUSED
            detail = "; ".join(f"{one.answer.worker}: {one.answer.message}" for one in found)
            await self._audit("clean", ", ".join(sorted(removed)) or "-", actor, outcome, detail)
        return found

    async def _caches(self, workers: Sequence[str]) -> Mapping[str, object]:
        return await call(self._context, workers, "vmachines.cache", {}, _ANSWER_S) if workers else {}

    async def _send(self, verb: Verb, uri: str, actor: Actor, answers: dict[str, Answer], *, pin: bool) -> None:
        """Send the job and replace `answers` by those of the workers."""
        kwarg: dict[str, Any] = {"uri": uri} | ({"pin": True} if pin else {})
        function = f"vmachines.cache_{verb}"
        if verb == "cancel":
            function, kwarg = "vmachines.cache_prefetch", {"uri": uri, "cancel": True}
        try:
            replies = await call(self._context, list(answers), function, kwarg, _ANSWER_S)
        except SaltError as err:
            await self._audit(verb, uri, actor, Outcome.REFUSED, str(err))
            raise
        answers.update({worker: _answer(worker, replies.get(worker)) for worker in answers})
        refused = [answer for answer in answers.values() if not answer.success]
        outcome = Outcome.REFUSED if len(refused) == len(answers) else Outcome.DONE
        accepted = ", ".join(answer.worker for answer in answers.values() if answer.success)
        detail = "; ".join(
            [
                _PINNED if pin and accepted else "",
                accepted,
                *(f"{answer.worker}: {answer.message}" for answer in refused),
            ]
        ).strip("; ")
        await self._audit(verb, uri, actor, outcome, detail)

    async def _audit(self, verb: str, uri: str, actor: Actor, outcome: Outcome, detail: str) -> None:
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
            code = "" if success or not isinstance(reply, Mapping) else str(reply.get("code", ""))[:_MAX_CODE]
            return Answer(worker=worker, success=success, message=masked(message)[:_MAX_MESSAGE], code=code)
        case None | False | "":
            return Answer(worker=worker, success=False, message="It did not answer in time; it may still do it.")
        case _:
            return Answer(worker=worker, success=False, message="Its answer is no reply of vmachines.")
