"""Audit entries for acts that did not go through this master, from Salt's bus and from workers. Pure.

The sources are untrusted: fields are truncated and sanitized. Only arguments that identify the VM are stored, because
others may contain secrets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from master_service.planning.outcomes import Outcome
from master_service.policy.audit import Actor, AuditEntry
from master_service.saltapi.untrusted import sanitize_text
from worker_service.contract import EVENT_ROOT, READ_ONLY_VERBS, AuditEvent

_VERB: Final = re.compile(r"[a-z_]{1,32}")
_UUID: Final = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_KEYWORD: Final = re.compile(r"([^\d\W][\w.-]*)=(?!=)(.*)", re.DOTALL)
"""A positional argument that a minion reads as a named one. Source: salt.utils.args.KWARG_REGEX of 3008.3."""

_POSITIONS: Final[Mapping[str, tuple[str, ...]]] = {"start": ("name",), "apply": ()}
_USUAL: Final = ("uuid", "name")
"""The first parameters of a verb of `vmachines`, which identify the VM."""

_MOST_ENTRIES: Final = 1000
_ANSWER_LIMIT: Final = 1000
_MESSAGE_LIMIT: Final = 200
_ACTOR_LIMIT: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalResult:
    """The result of one verb of one job on a minion. `refused`: the reason of a refusal, or None."""

    verb: str
    refused: str | None


def entries_from_job(job: Mapping[str, Any], at: datetime) -> list[AuditEntry]:
    """Return the entries about a job of another Salt user: one for each verb that changes something, and minion."""
    actor = Actor(name=_one_line(job.get("user"), 63), interface="salt")
    jid = _one_line(job.get("jid"), 32)
    entries: list[AuditEntry] = []
    for verb, arguments in _calls(job.get("fun"), job.get("arg")):
        named = _names(verb, arguments)
        for minion in _minions(job):
            if len(entries) == _MOST_ENTRIES:
                return entries
            entries.append(
                AuditEntry(
                    at=at,
                    actor=actor,
                    verb=verb,
                    kind="vm",
                    target=named.get("name", ""),
                    uuid=named.get("uuid", ""),
                    outcome=Outcome.SENT,
                    detail=minion_label(minion),
                    jid=jid,
                )
            )
    return entries


def results_from_return(event: Mapping[str, Any]) -> list[ExternalResult]:
    """Return the results in a minion's return of all verbs that change something."""
    fun, answer = event.get("fun"), event.get("return")
    if not isinstance(fun, list):
        return [ExternalResult(verb=verb, refused=_refusal(answer)) for verb, _ in _calls(fun, [])]
    if isinstance(answer, list):  # a minion with `multifunc_ordered`
        answers = dict(zip(map(str, fun), answer, strict=False))
    else:
        answers = answer if isinstance(answer, dict) else {}
    return [
        ExternalResult(verb=verb, refused=_refusal(answers.get(f"{EVENT_ROOT}.{verb}")))
        for verb, _ in _calls(fun, [[]] * len(fun))
    ]


def entry_from_worker_event(minion: str, event: AuditEvent, at: datetime) -> AuditEntry | None:
    """Return the entry about an act through a worker's own interface, or None if it changes nothing.

    The actor is NAME@WORKER: an account of that worker. No account of the master has an @ in its name.
    """
    if not _VERB.fullmatch(event.verb) or event.verb in READ_ONLY_VERBS:
        return None
    reason = "" if event.success else f": {_one_line(event.code, 32)}"
    return AuditEntry(
        at=at,
        actor=Actor(
            name=f"{_one_line(event.actor, _ACTOR_LIMIT)}@{minion}"[:63],
            interface=event.interface,
            address=_one_line(event.address, 45),
        ),
        verb=event.verb,
        kind="vm",
        target=_one_line(event.name, 255),
        uuid=event.uuid if _UUID.fullmatch(event.uuid) else "",
        outcome=Outcome.DONE if event.success else Outcome.REFUSED,
        detail=f"{minion_label(minion)} at {_one_line(event.at, 40)}{reason}",
    )


def minion_label(minion: str) -> str:
    """Return how the detail of an entry names its minion."""
    return f"on {_one_line(minion, 255)}"


def _calls(funs: object, arguments: object) -> Iterator[tuple[str, list[Any]]]:
    """Yield the verbs of `vmachines` in a job that change something, each with its arguments."""
    pairs = [(funs, arguments)]
    if isinstance(funs, list):
        lists = arguments if isinstance(arguments, list) else []
        pairs = list(zip(funs, [*lists, *[[]] * len(funs)], strict=False))
    for fun, given in pairs:
        module, _, verb = str(fun).partition(".")
        if module == EVENT_ROOT and _VERB.fullmatch(verb) and verb not in READ_ONLY_VERBS:
            yield verb, given if isinstance(given, list) else []


def _names(verb: str, arguments: list[Any]) -> dict[str, str]:
    """Return the arguments of a call that identify the VM, in every form that a minion accepts."""
    positions = iter(() if verb.startswith("cache_") else _POSITIONS.get(verb, _USUAL))
    found: dict[str, str] = {}
    for argument in arguments:
        if isinstance(argument, dict) and argument.get("__kwarg__") is True:
            found |= {key: str(argument[key]) for key in _USUAL if argument.get(key) is not None}
        elif isinstance(argument, str) and (match := _KEYWORD.fullmatch(argument)):
            found |= {match[1]: match[2]} if match[1] in _USUAL else {}
        elif (position := next(positions, None)) is not None and argument is not None:
            found[position] = str(argument)
    if not _UUID.fullmatch(found.get("uuid", "")):
        found.pop("uuid", None)
    return {key: _one_line(value, 255) for key, value in found.items()}


def _minions(job: Mapping[str, Any]) -> list[str]:
    """Return the minions of a job as the Salt master names them, else its target."""
    for named_minions in (job.get("minions"), job.get("tgt")):
        if isinstance(named_minions, list) and named_minions:
            return [str(minion) for minion in named_minions]
    return [str(job.get("tgt", ""))]


def _refusal(answer: object) -> str | None:
    match answer:
        case {"success": True}:
            return None
        case {"success": False, "message": str(message)}:
            return _one_line(message, _MESSAGE_LIMIT)
        case _:
            last = sanitize_text(str(answer)[-_ANSWER_LIMIT:]).strip().splitlines()[-1:] or ["nothing"]
            return _one_line(f"answers: {last[0]}", _MESSAGE_LIMIT)


def _one_line(value: object, most: int) -> str:
    """Return an untrusted value as one short line."""
    return "".join(each if each.isprintable() else " " for each in sanitize_text(value if value is not None else ""))[
        :most
    ]
