"""One sentence for each entry of a VM's history: for the event stream, and for `saltern events`. Pure."""

from __future__ import annotations

from typing import Final, Literal

Fact = Literal["desired", "dispatch", "observed"]

SENT: Final = "sent, try "
ACCEPTED: Final = "accepted"
REFUSED: Final = "refused: "
NOT_DELIVERED: Final = "not delivered: "
"""How the messages of entries about a command begin. Others say why a start waits for a worker."""

_OF_THE_MASTER: Final = {
    "follow": "the desired state becomes {after}",
    "give_up": "the desired state becomes {after}",
    "take_back": "it has its former settings again, because its worker refused the others",
    "destroyed": "it is destroyed",
}
_OF_USERS: Final = {
    "create": "{actor} created it; its desired state is {after}",
    "modify": "{actor} modified it",
    "fence": "{actor} declared that its worker is switched off",
}


def sentence(fact: Fact, actor: str, change: tuple[str, str], message: str, cause: str = "") -> str:
    """Return the sentence without the VM's name: `w1 reports halted, was running (crashed)`.

    `change`: the status before, and the status or command after; the other arguments are the entry's fields.
    """
    before, after = change
    match fact:
        case "desired" if text := _OF_THE_MASTER.get(message):
            return _with(text.format(after=after), cause)
        case "desired":
            text = _OF_USERS.get(message, "{actor} requested {verb}")
            return _with(text.format(actor=actor, after=after, verb=message), cause)
        case "dispatch":
            return _with(_of_command(actor, after, message), cause)
        case _ if after == "destroyed":
            return f"{actor} has destroyed it"
        case _:
            was = f", was {before}" if before and before != after else ""
            return _with(f"{actor} reports {after}{was}" + (f" ({cause})" if cause else ""), message)


def _of_command(worker: str, verb: str, message: str) -> str:
    if message.startswith(SENT):
        number = message.removeprefix(SENT)
        return f"{verb} was sent to {worker}" + (f", try {number}" if number != "1" else "")
    if message == ACCEPTED:
        return f"{worker} accepted the {verb}"
    if message.startswith(REFUSED):
        return f"{worker} refused the {verb}: {message.removeprefix(REFUSED)}"
    if message.startswith(NOT_DELIVERED):
        return f"{verb} did not reach {worker}: {message.removeprefix(NOT_DELIVERED)}"
    return f"{verb} waits: {message}"


def _with(text: str, more: str) -> str:
    return f"{text}: {more}" if more else text
