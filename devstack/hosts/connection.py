"""The way into an emulated host: one ssh connection, which all commands share."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final, Self

from devstack.console import Trouble

_CONNECT_S: Final = 60.0
_POLL_S: Final = 0.05


class Connection:
    """A connection as root to a host whose ssh server is behind a port of 127.0.0.1."""

    def __init__(self, keys: Path, port: int) -> None:
        """Prepare it. `keys` has `key`, and `known_hosts` with the host's key for the name `saltern-host`."""
        self._keys = keys
        self._port = port
        self._connection: subprocess.Popen[bytes] | None = None
        self._sockets: Final = Path(tempfile.mkdtemp(prefix="saltern-host-"))  # a unix socket needs a short path

    def __enter__(self) -> Self:
        try:
            self.connect()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection for good."""
        self.disconnect()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def disconnect(self) -> None:
        """End the connection."""
        if self._connection:
            self._connection.terminate()
            self._connection.wait()
            self._connection = None

    def run(
        self, argv: Sequence[str], *, check: bool = True, stdin: bytes | None = None, timeout_s: float | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the host, and return its exit code and output as text.

        Raises Trouble if its code is not 0, unless `check` is False.
        """
        done = subprocess.run(self.ssh(argv), input=stdin or b"", capture_output=True, check=False, timeout=timeout_s)
        out, err = (text.decode(errors="replace") for text in (done.stdout, done.stderr))
        if check and done.returncode:
            raise Trouble(f"{shlex.join(argv)} failed with code {done.returncode} in the host: {(err or out).strip()}")
        return subprocess.CompletedProcess(list(argv), done.returncode, out, err)

    def lines(self, argv: Sequence[str]) -> Iterator[str]:
        """Run a command as root in the host, and yield each line of its output as soon as it is there.

        Raises Trouble at the end if its code is not 0 or the connection is lost.
        """
        with subprocess.Popen(self.ssh(argv), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None  # noqa: S101
            try:
                for line in child.stdout:
                    yield line.rstrip("\n")
            finally:
                child.terminate()
        if child.returncode:
            raise Trouble(f"{shlex.join(argv)} failed with code {child.returncode} in the host")

    def put(self, source: Path, target: str) -> None:
        """Copy a file into the host."""
        self.run(["sh", "-c", f"cat >{shlex.quote(target)}"], stdin=source.read_bytes())

    def get(self, source: str, target: Path) -> None:
        """Copy a file out of the host."""
        with target.open("wb") as file:
            subprocess.run(self.ssh(["cat", source]), stdin=subprocess.DEVNULL, stdout=file, check=True)

    def ssh(self, argv: Sequence[str]) -> list[str]:
        """Return the command line that runs a command in the host, through the connection that is open."""
        return [*self._ssh_words(), "saltern-host", "--", shlex.join(argv)]

    def connect(self) -> None:
        """Open the connection that all commands share: each one alone would take a second to agree on keys."""
        socket = self._sockets / "ssh"
        with suppress(FileNotFoundError):
            socket.unlink()
        keys = self._keys
        words = ["-o", f"UserKnownHostsFile={keys / 'known_hosts'}", "-i", str(keys / "key")]
        argv = [*self._ssh_words(), "-M", "-N", *words, "saltern-host"]
        self._connection = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
        deadline = time.monotonic() + _CONNECT_S
        while not socket.exists():
            if self._connection.poll() is not None or time.monotonic() > deadline:
                assert self._connection.stderr is not None  # noqa: S101
                self._connection.kill()
                said = self._connection.stderr.read().decode(errors="replace").strip()
                raise Trouble(f"The host at port {self._port} accepts no ssh connection: {said or 'no answer'}")
            time.sleep(_POLL_S)

    def _ssh_words(self) -> list[str]:
        options = {
            "ControlPath": self._sockets / "ssh",
            "HostName": "127.0.0.1",
            "Port": self._port,
            "User": "root",
            "HostKeyAlias": "saltern-host",
            "StrictHostKeyChecking": "yes",
            "BatchMode": "yes",
            "IdentitiesOnly": "yes",
            "LogLevel": "ERROR",
        }
        words = [word for name, value in options.items() for word in ("-o", f"{name}={value}")]
        return ["ssh", "-F", "/dev/null", *words]
