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
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Final

import msgspec

from worker_service.core.errors import SalternError
from worker_service.core.failpoints import ENVIRONMENT
from worker_service.core.settings import load

log = logging.getLogger("saltern.nursery")

_IDLE_S: Final = 180.0
_LOOK_S: Final = 5.0
_PATIENCE_S: Final = 0.5
_REQUEST_BYTES: Final = 4096
_DESCRIPTORS: Final = 3
_READY: Final = b"r"
_GO: Final = b"g"
_PACKAGE: Final = Path(__file__).parents[1]


class Birth(msgspec.Struct, frozen=True):
    """What a helper is to be born with, beside its log, its VM's work lock and, where `kind` is given, a seat."""

    uuid: str
    version: str
    kind: str | None


@cache
def version() -> str:
    """Tells the code of this process from what was installed before or after it."""
    newest = max(path.stat().st_mtime_ns for path in _PACKAGE.rglob("*.py"))
    return f"{_PACKAGE} {newest}"


def ask(data_root: Path, uuid: str, log_file: int, lock: int, seat: tuple[str, int] | None) -> bool:
    """Let the nursery bear a helper; False where it did not, and never will."""
    if ENVIRONMENT in os.environ:  # a fault is asked of a helper that has this process's environment
        return False
    birth = msgspec.json.encode(Birth(uuid, version(), seat[0] if seat else None))
    descriptors = [log_file, lock, *([seat[1]] if seat else [])]
    with suppress(OSError), _call(data_root) as call:
        call.send(birth)
        if call.recv(1) == _READY:
            socket.send_fds(call, [_GO], descriptors)
            return True
    return False


def leave_one(data_root: Path, settings_argument: Sequence[str]) -> None:
    """See to it that there is a nursery, for whoever comes next."""
    with suppress(OSError), _call(data_root):
        return
    argv = ["setsid", "--fork", sys.executable, "-m", "worker_service.helper.forkserver", *settings_argument]
    quiet = subprocess.DEVNULL
    with suppress(OSError):
        subprocess.run(argv, stdin=quiet, stdout=quiet, stderr=quiet, cwd="/", check=False)


@contextmanager
def _call(data_root: Path) -> Iterator[socket.socket]:
    """A connection to the nursery, if it is one of our own; raises OSError."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as call:
        call.settimeout(_PATIENCE_S)
        call.connect(_address(data_root))
        _demand_own_user(call)
        yield call


def _address(data_root: Path) -> str:
    """An abstract name: it goes with the process that has it, and only one can have it.

    One for each data root and mount namespace: a helper is born into the sandbox of whoever asks for it.
    """
    root, world = data_root.stat(), Path("/proc/self/ns/mnt").stat()
    return f"\0saltern-nursery-{root.st_dev:x}-{root.st_ino:x}-{world.st_ino:x}"


def _demand_own_user(call: socket.socket) -> None:
    """Raise PermissionError where the other end is another user's."""
    credentials = call.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    user = int.from_bytes(credentials[4:8], sys.byteorder)
    if user != os.geteuid():
        raise PermissionError(f"the other end is user {user}")


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
            door.bind(_address(data_root))
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
    call.settimeout(_PATIENCE_S)
    descriptors: list[int] = []
    try:
        _demand_own_user(call)
        request = call.recv(_REQUEST_BYTES)
        if not request:  # somebody looked whether there is a nursery
            return True
        birth = msgspec.json.decode(request, type=Birth)
        if birth.version != version():
            return False
        call.send(_READY)
        word, descriptors, _, _ = socket.recv_fds(call, 1, _DESCRIPTORS)
        if word == _GO:
            _bear(birth, descriptors, settings, (door, call))
    except (OSError, msgspec.MsgspecError) as err:
        log.warning("a request was not carried out: %s", err)
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
    return True


def _bear(birth: Birth, descriptors: Sequence[int], settings: str | None, doors: Sequence[socket.socket]) -> None:
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
            log_file, lock, *seat = descriptors
            os.dup2(log_file, 1)
            os.dup2(log_file, 2)
            Path("/proc/self/comm").write_text("saltern-helper", "ascii")
            step_loop.run(birth.uuid, settings, lock, (birth.kind, seat[0]) if birth.kind else None)
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
