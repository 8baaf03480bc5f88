"""Events of libvirt, used only as hints that a domain changed or that its disks moved. The watcher then looks at it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import libvirt

from worker_service.hypervisor.call_timeout import CallTimeout, SharedCall

log = logging.getLogger("saltern.watcher")

_KEEPALIVE_S = 5
_KEEPALIVE_MISSES = 3


class LibvirtEvents:
    """One connection that listens. `ensure` reopens it after libvirtd has gone away.

    Args:
        uri: libvirt connection URI.
        changed: called from the event thread with the uuid of a domain that changed.
        ended_by_host: called before that if a signal from the host ended QEMU, which no later query shows.
        limit_s: how long libvirt may take to register the events.
    """

    def __init__(
        self, uri: str, changed: Callable[[str], None], ended_by_host: Callable[[str], None], limit_s: float = 60.0
    ) -> None:
        self._uri = uri
        self._changed = changed
        self._ended_by_host = ended_by_host
        self._connection: Any = None
        self._listening = SharedCall(limit_s, self._listen)
        # The event loop belongs to the process and must exist before the connection.
        libvirt.virEventRegisterDefaultImpl()
        threading.Thread(target=self._run, name="libvirt-events", daemon=True).start()

    def ensure(self) -> bool:
        """Connect if no connection is alive. Return True after a new connection: then events may have been lost."""
        with suppress(libvirt.libvirtError):
            if self._connection is not None and self._connection.isAlive():
                return False
        self._connection = None
        try:
            self._listening.result()
        except (CallTimeout, libvirt.libvirtError) as err:
            log.warning("libvirt does not answer at %s: %s", self._uri, err or "it hangs")
            return False
        return True

    def _listen(self) -> None:
        connection = libvirt.openReadOnly(self._uri)
        connection.setKeepAlive(_KEEPALIVE_S, _KEEPALIVE_MISSES)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)
        connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2, self._block_job, None)
        self._connection = connection

    def _block_job(self, _connection: Any, domain: Any, *_job: object) -> None:
        self._changed(domain.UUIDString())

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        uuid = domain.UUIDString()
        if (event, detail) == (libvirt.VIR_DOMAIN_EVENT_SHUTDOWN, libvirt.VIR_DOMAIN_EVENT_SHUTDOWN_HOST):
            self._ended_by_host(uuid)
        self._changed(uuid)

    @staticmethod
    def _run() -> None:
        while True:
            libvirt.virEventRunDefaultImpl()
