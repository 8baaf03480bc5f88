"""Images in the caches of workers: what is asked of several workers in one Salt job, and what each answered."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from master_service.core.errors import NotFound, SaltError
from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.runtime.context import Context

Verb = Literal["prefetch", "pin", "unpin"]
_ANSWER_S: Final = 15.0
_TOLD: Final = 500
_NAME: Final = 255


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What one worker said."""

    worker: str
    success: bool
    message: str


class ImageService:
    """Images in the caches of workers."""

    def __init__(self, parts: Context) -> None:
        self._context = parts

    async def chosen(self, worker_ids: Sequence[str] | None) -> list[str]:
        """These workers, or all that answer. Raises NotFound."""
        known = await self._context.store.queries.workers()
        if worker_ids is None:
            return [worker.id for worker in known if worker.unreachable_since is None]
        if absent := sorted(set(worker_ids) - {worker.id for worker in known}):
            raise NotFound(f"There is no worker {absent[0]!r}.", "`saltern workers` shows those that ever answered.")
        return sorted(set(worker_ids))

    async def ask(
        self, verb: Verb, uri: str, workers: Sequence[str], actor: Actor, *, pin: bool = False
    ) -> list[Answer]:
        """Tell each of these workers; what each said. One that is silent may do it, too. Raises SaltError."""
        if not workers:
            return []
        kwarg: dict[str, Any] = {"uri": uri} | ({"pin": True} if pin else {})
        try:
            said = await self._context.salt.call(workers, f"vmachines.cache_{verb}", kwarg, _ANSWER_S)
        except SaltError as err:
            await self._note(verb, uri, actor, Outcome.REFUSED, str(err))
            raise
        answers = [_answer(worker, said.get(worker)) for worker in workers]
        refused = [answer for answer in answers if not answer.success]
        outcome = Outcome.REFUSED if len(refused) == len(answers) else Outcome.DONE
        told = ", ".join(answer.worker for answer in answers if answer.success)
        detail = "; ".join([told, *(f"{answer.worker}: {answer.message}" for answer in refused)]).strip("; ")
        await self._note(verb, uri, actor, outcome, detail)
        return answers

    async def sizes(self, workers: Sequence[str]) -> dict[str, dict[str, Any]]:
        """By URI: `size` in bytes and `pinned` on these workers, asked in one job. Raises SaltError."""
        said = await self._context.salt.call(workers, "vmachines.cache", {}, _ANSWER_S) if workers else {}
        found: dict[str, dict[str, Any]] = {}
        for worker, reply in said.items():
            for entry in _entries(reply):
                for uri in entry["uris"]:
                    known = found.setdefault(uri, {"size": entry["size"], "pinned": []})
                    if entry.get("pinned") is True:
                        known["pinned"].append(worker)
        return found

    async def _note(self, verb: Verb, uri: str, actor: Actor, outcome: Outcome, detail: str) -> None:
        at = self._context.clock()
        entry = AuditEntry(
            at=at, actor=actor, verb=verb, kind="image", target=uri[:_NAME], outcome=outcome, detail=detail[:_TOLD]
        )
        await self._context.store.audit.add(entry)


def _answer(worker: str, reply: object) -> Answer:
    """A worker's reply: hostile input."""
    match reply:
        case {"success": bool() as success, "message": str() as message}:
            return Answer(worker=worker, success=success, message=message[:_TOLD])
        case None | False | "":
            return Answer(worker=worker, success=False, message="It did not answer in time; it may do it nevertheless.")
        case _:
            return Answer(worker=worker, success=False, message="It answered something else than a reply of vmachines.")


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
