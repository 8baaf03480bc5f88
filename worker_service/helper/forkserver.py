"""Fork server for helpers: it has all modules imported and forks a helper in a few milliseconds.

    python -m worker_service.helper.forkserver [--settings FILE]

Without it, the start of a cached image would wait for Python's imports half as long as for QEMU. It is an optimization:
if it is missing, outdated or slow, the launcher starts the helper as a new process. A helper that has done its work
leaves a fork server running, which ends after some minutes without requests.

The server answers a request first. It forks once the launcher has confirmed and sent the descriptors that the helper
inherits. So a launcher that has stopped waiting starts the helper itself, and a hung server never holds a lock.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import SalternError
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.core.settings import load
from worker_service.helper.forkserver_client import (
    GO,
    PATIENCE_S,
    READY,
    ForkRequest,
    address,
    require_own_user,
    version,
)

log = logging.getLogger("saltern.forkserver")

_IDLE_S: Final = 180.0
_ACCEPT_S: Final = 5.0
_REQUEST_BYTES: Final = 4096
_DESCRIPTORS: Final = 3


def _import_all(hypervisors: Iterable[str]) -> None:
    """Import the modules that a start of a cached image needs."""
    from worker_service.helper import runner  # noqa: F401, PLC0415
    from worker_service.hypervisor.registry import driver_class  # noqa: PLC0415
    from worker_service.steps import registry  # noqa: F401, PLC0415
    from worker_service.transfer import file  # noqa: F401, PLC0415

    for name in hypervisors:
        driver_class(name)


def serve(settings: str | None) -> None:
    """Fork helpers until no request has come for some minutes."""
    known = load(settings)
    data_root = known.data_root
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        try:
            listener.bind(address(data_root))
        except OSError:  # another fork server is running
            return
        _import_all(known.hypervisors)
        listener.listen()
        listener.settimeout(_ACCEPT_S)
        idle = 0.0
        while idle < _IDLE_S and data_root.exists():
            try:
                call, _ = listener.accept()
            except TimeoutError:
                idle += _ACCEPT_S
                continue
            idle = 0.0
            with call:
                if not _answer(call, listener, settings):
                    return


def _answer(call: socket.socket, listener: socket.socket, settings: str | None) -> bool:
    """Carry out one request; return False if the launcher has other code than this server."""
    call.settimeout(PATIENCE_S)
    descriptors: list[int] = []
    try:
        require_own_user(call)
        data = call.recv(_REQUEST_BYTES)
        if not data:  # the other end only checked whether a fork server is running
            return True
        request = msgspec.json.decode(data, type=ForkRequest)
        if request.version != version():
            return False
        call.send(READY)
        word, descriptors, _, _ = socket.recv_fds(call, 1, _DESCRIPTORS)
        if word == GO:
            _fork_child(request, descriptors, settings, (listener, call))
    except (OSError, msgspec.MsgspecError) as err:
        log.warning("a request was not carried out: %s", err)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _fork_child(
    request: ForkRequest, descriptors: Sequence[int], settings: str | None, sockets: Sequence[socket.socket]
) -> None:
    """Fork a helper into a session of its own. It is forked twice, so no process has to wait for its end."""
    from worker_service.helper import runner  # noqa: PLC0415 - imported only where a fork server runs

    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        os.setsid()
        if os.fork() == 0:
            for each in sockets:
                each.close()
            log_file, lock, *slot = descriptors
            os.dup2(log_file, 1)
            os.dup2(log_file, 2)
            Path("/proc/self/comm").write_text("saltern-helper", "ascii")
            if request.fault:
                os.environ[ENVIRONMENT] = request.fault
            runner.run(request.job, settings, lock, (request.kind, slot[0]) if request.kind else None)
        code = 0
    except SalternError as err:
        os.write(2, f"{err}\n".encode())
    finally:
        os._exit(code)  # skips the exit handlers of the fork server


def main() -> None:
    """Run the fork server."""
    parser = argparse.ArgumentParser(prog="worker_service.helper.forkserver", description="Fork server for helpers.")
    parser.add_argument("--settings", help="the worker's settings file")
    arguments = parser.parse_args()
    serve(arguments.settings)


if __name__ == "__main__":
    main()
