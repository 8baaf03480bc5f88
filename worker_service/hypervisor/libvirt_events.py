"""Lifecycle events of libvirt, as hints: which domain changed. Everything else is asked for afterwards."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import libvirt

log = logging.getLogger("saltern.watcher")

_KEEPALIVE_S = 5
_KEEPALIVE_MISSES = 3


class LibvirtEvents:
    """One connection that listens; reopened by `ensure` when libvirtd went away.

    Args:
        uri: libvirt connection URI.
        changed: called from the event thread with the uuid of a domain that changed.
    """

    def __init__(self, uri: str, changed: Callable[[str], None]) -> None:
        self._uri = uri
        self._changed = changed
        self._connection: Any = None
        # The event loop is the process's own and must exist before the connection does.
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="libvirt-events", daemon=True).start()

    def ensure(self) -> bool:
        """Connect if there is no living connection; returns whether it was made anew: then look at everything."""
        with suppress(libvirt.libvirtError):
            if self._connection is not None and self._connection.isAlive():
                return False
        self._connection = None
        try:
            connection = libvirt.openReadOnly(self._uri)
            connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_MISSES)
            connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        except libvirt.libvirtError as err:
            log.warning("libvirt does not answer at %s: %s", self._uri, err.get_error_message())
            return False
        self._connection = connection
        return True

    def _lifecycle(self, _connection: Any, domain: Any, _event: int, _detail: int, _opaque: object) -> None:
        self._changed(domain.UUIDString())

    @staticmethod
    def _run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()
