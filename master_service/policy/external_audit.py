"""What is done to VMs past this master, as lines of the audit: heard on Salt's bus, or told by workers. Pure.

All of it is what others say: bounded, made harmless, and of its arguments only what names the VM, as others may have
secrets in them.
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

_VERB: Final = re.compile(r"^[a-z_]{1,32}$")
_UUID: Final = re.compile(r"^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$")
_KEYWORD: Final = re.compile(r"^([^\d\W][\w.-]*)=(?!=)(.*)$", re.DOTALL)
"""A positional argument that a minion takes for one with a name. Source: salt.utils.args.KWARG_REGEX of 3008.3."""

_POSITIONS: Final[Mapping[str, tuple[str, ...]]] = {"start": ("name",), "apply": ()}
_USUAL: Final = ("uuid", "name")
"""How the parameters of a verb of `vmachines` begin that name the VM."""

_MOST_LINES: Final = 1000
_MOST_SAID: Final = 1000
_SAID: Final = 200
_WHO: Final = 30


@dataclass(frozen=True, kw_only=True, slots=True)
class ExternalResult:
    """What a minion returned of one verb of one job. `refused`: why it did not do it; None: it did."""

    verb: str
    refused: str | None


def entries_from_job(job: Mapping[str, Any], at: datetime) -> list[AuditEntry]:
    """The lines about a job that somebody gave to Salt: one for each verb that changes something, and each minion."""
    actor = Actor(name=_word(job.get("user"), 63), interface="salt")
    jid = _word(job.get("jid"), 32)
    lines: list[AuditEntry] = []
    for verb, arguments in _calls(job.get("fun"), job.get("arg")):
        named = _names(verb, arguments)
        for minion in _minions(job):
            if len(lines) == _MOST_LINES:
                return lines
            lines.append(
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
    return lines


def results_from_return(event: Mapping[str, Any]) -> list[ExternalResult]:
    """What a minion's return says of each verb that changes something."""
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


def entry_from_worker_event(minion: str, deed: AuditEvent, at: datetime) -> AuditEntry | None:
    """The line about a deed through a worker's own door; None: it is none that an audit tells of.

    Who did it is somebody of that worker's, whatever they are called: no user here has an @ in their name.
    """
    if not _VERB.fullmatch(deed.verb) or deed.verb in READ_ONLY_VERBS:
        return None
    why = "" if deed.success else f": {_word(deed.code, 32)}"
    return AuditEntry(
        at=at,
        actor=Actor(
            name=f"{_word(deed.actor, _WHO)}@{minion}"[:63], interface=deed.interface, address=_word(deed.address, 45)
        ),
        verb=deed.verb,
        kind="vm",
        target=_word(deed.name, 255),
        uuid=deed.uuid if _UUID.fullmatch(deed.uuid) else "",
        outcome=Outcome.DONE if deed.success else Outcome.REFUSED,
        detail=f"{minion_label(minion)} at {_word(deed.at, 40)}{why}",
    )


def minion_label(minion: str) -> str:
    """How the detail of a line names the minion that it is about."""
    return f"on {_word(minion, 255)}"


def _calls(funs: object, arguments: object) -> Iterator[tuple[str, list[Any]]]:
    """The verbs of ours that a job has in it and that change something, each with its arguments."""
    pairs = [(funs, arguments)]
    if isinstance(funs, list):
        lists = arguments if isinstance(arguments, list) else []
        pairs = list(zip(funs, [*lists, *[[]] * len(funs)], strict=False))
    for fun, given in pairs:
        module, _, verb = str(fun).partition(".")
        if module == EVENT_ROOT and _VERB.fullmatch(verb) and verb not in READ_ONLY_VERBS:
            yield verb, given if isinstance(given, list) else []


def _names(verb: str, arguments: list[Any]) -> dict[str, str]:
    """What of a call's arguments names the VM, whichever way a minion would read it."""
    positions = iter(() if verb.startswith("cache_") else _POSITIONS.get(verb, _USUAL))
    found: dict[str, str] = {}
    for argument in arguments:
        if isinstance(argument, dict) and argument.get("__kwarg__") is True:
            found |= {key: str(argument[key]) for key in _USUAL if argument.get(key) is not None}
        elif isinstance(argument, str) and (match := _KEYWORD.match(argument)):
            found |= {match[1]: match[2]} if match[1] in _USUAL else {}
        elif (position := next(positions, None)) is not None and argument is not None:
            found[position] = str(argument)
    if not _UUID.fullmatch(found.get("uuid", "")):
        found.pop("uuid", None)
    return {key: _word(value, 255) for key, value in found.items()}


def _minions(job: Mapping[str, Any]) -> list[str]:
    """Those that a job went to, as the Salt master says; else its target."""
    for told in (job.get("minions"), job.get("tgt")):
        if isinstance(told, list) and told:
            return [str(minion) for minion in told]
    return [str(job.get("tgt", ""))]


def _refusal(answer: object) -> str | None:
    match answer:
        case {"success": True}:
            return None
        case {"success": False, "message": str(message)}:
            return _word(message, _SAID)
        case _:
            last = sanitize_text(str(answer)[-_MOST_SAID:]).strip().splitlines()[-1:] or ["nothing"]
            return _word(f"answers: {last[0]}", _SAID)


def _word(value: object, most: int) -> str:
    """What somebody said as one short line."""
    return "".join(each if each.isprintable() else " " for each in sanitize_text(value if value is not None else ""))[
        :most
    ]
