"""Where helpers are born quickly: a process with everything imported that forks them from itself.

    python -m worker_service.helper.forkserver [--settings FILE]

A start of a cached image would else wait for Python's imports half as long as for QEMU. Nothing depends on it: where
there is none, or one of another version, helpers are started as processes of their own. A helper that has done its
work leaves one behind, which ends when nobody has needed it for some minutes.

A request is answered first, and carried out on a second word, which hands over the descriptors that the helper is born
with: who lost patience meanwhile starts the helper otherwise, and no lock is held by a nursery that hangs.
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import SalternError
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
_LOOK_S: Final = 5.0
_REQUEST_BYTES: Final = 4096
_DESCRIPTORS: Final = 3


def _import_all() -> None:
    """What a start of a cached image needs."""
    from worker_service.helper import step_loop  # noqa: F401, PLC0415
    from worker_service.hypervisor import kvm  # noqa: F401, PLC0415
    from worker_service.steps import registry  # noqa: F401, PLC0415
    from worker_service.transfer import file  # noqa: F401, PLC0415


def serve(settings: str | None) -> None:
    """Bear helpers until nobody has needed one for a while."""
    data_root = load(settings).data_root
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as door:
        try:
            door.bind(address(data_root))
        except OSError:  # there is one
            return
        _import_all()
        door.listen()
        door.settimeout(_LOOK_S)
        idle = 0.0
        while idle < _IDLE_S and data_root.exists():
            try:
                call, _ = door.accept()
            except TimeoutError:
                idle += _LOOK_S
                continue
            idle = 0.0
            with call:
                if not _answer(call, door, settings):
                    return


def _answer(call: socket.socket, door: socket.socket, settings: str | None) -> bool:
    """Carry out one request; False when newer code is asked for."""
    call.settimeout(PATIENCE_S)
    descriptors: list[int] = []
    try:
        require_own_user(call)
        request = call.recv(_REQUEST_BYTES)
        if not request:  # somebody looked whether there is a nursery
            return True
        birth = msgspec.json.decode(request, type=ForkRequest)
        if birth.version != version():
            return False
        call.send(READY)
        word, descriptors, _, _ = socket.recv_fds(call, 1, _DESCRIPTORS)
        if word == GO:
            _fork_child(birth, descriptors, settings, (door, call))
    except (OSError, msgspec.MsgspecError) as err:
        log.warning("a request was not carried out: %s", err)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _fork_child(
    birth: ForkRequest, descriptors: Sequence[int], settings: str | None, doors: Sequence[socket.socket]
) -> None:
    """Fork a helper into a session of its own. Forked twice: nobody has to wait for its end."""
    from worker_service.helper import step_loop  # noqa: PLC0415 - who only asks does not need it

    child = os.fork()
    if child:
        os.waitpid(child, 0)
        return
    code = 1
    try:
        os.setsid()
        if os.fork() == 0:
            for door in doors:
                door.close()
            log_file, lock, *slot = descriptors
            os.dup2(log_file, 1)
            os.dup2(log_file, 2)
            Path("/proc/self/comm").write_text("saltern-helper", "ascii")
            step_loop.run(birth.uuid, settings, lock, (birth.kind, slot[0]) if birth.kind else None)
        code = 0
    except SalternError as err:
        os.write(2, f"{err}\n".encode())
    finally:
        os._exit(code)  # not through the nursery's own end


def main() -> None:
    """Serve until nobody needs it."""
    parser = argparse.ArgumentParser(
        prog="worker_service.helper.forkserver", description="Where helpers are born quickly."
    )
    parser.add_argument("--settings", help="the worker's settings file")
    arguments = parser.parse_args()
    serve(arguments.settings)


if __name__ == "__main__":
    main()
