"""The events of a worker, each signed and numbered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from worker_service.state.identity import Identity

Fire = Callable[[str, Mapping[str, Any]], object]
"""Sends an event with tag and data to the Salt bus."""


def signed(identity: Identity, minion: str, send: Fire) -> Fire:
    """Return a function that signs each event and sends it. There is one of these on a worker at a time."""
    identity.first_event()

    def fire(tag: str, data: Mapping[str, Any]) -> None:
        send(tag, identity.sign(data, tag, minion, identity.next_event()))

    return fire
