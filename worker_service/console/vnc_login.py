"""The password of a VNC server, which no viewer learns: this end logs in, and greets the viewer in the server's place.

Source: RFC 6143, 7.1 and 7.2.2.
"""

from __future__ import annotations

import asyncio
from typing import Final

from cryptography.hazmat.decrepit.ciphers.algorithms import TripleDES
from cryptography.hazmat.primitives.ciphers import Cipher, modes

from worker_service.console.rfb_filter import NotRfb

_VERSION: Final = b"RFB 003.008\n"
_OLDEST: Final = b"RFB 003.003\n"
_NONE: Final = 1
_PASSWORD: Final = 2
_KEY_BYTES: Final = 8
_CHALLENGE_BYTES: Final = 16
_LOGIN_S: Final = 20.0


class LoginFailed(Exception):
    """The server did not accept the password, or is no VNC server."""


def response(password: str, challenge: bytes) -> bytes:
    """Return the answer to a challenge: DES with the password as key, whose bits VNC takes in reverse order."""
    key = bytes(int(f"{byte:08b}"[::-1], 2) for byte in password.encode()[:_KEY_BYTES].ljust(_KEY_BYTES, b"\0"))
    # Three equal keys make one DES of it. VNC encrypts each block by itself.
    encryptor = Cipher(TripleDES(key * 3), modes.ECB()).encryptor()  # noqa: S305
    return encryptor.update(challenge) + encryptor.finalize()


async def log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, password: str) -> None:
    """Log in to a VNC server; the next message is the viewer's ClientInit. Raises LoginFailed, OSError."""
    try:
        async with asyncio.timeout(_LOGIN_S):
            await _log_in(reader, writer, password)
    except (TimeoutError, asyncio.IncompleteReadError) as err:
        raise LoginFailed("it did not answer as a VNC server does") from err


async def _log_in(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, password: str) -> None:
    if (version := await reader.readexactly(len(_VERSION))) != _VERSION:
        raise LoginFailed(f"it says {version!r}")
    writer.write(_VERSION)
    count = (await reader.readexactly(1))[0]
    kinds = await reader.readexactly(count)
    if _PASSWORD not in kinds:
        raise LoginFailed(f"it offers the security types {list(kinds)} and no password")
    writer.write(bytes([_PASSWORD]))
    writer.write(response(password, await reader.readexactly(_CHALLENGE_BYTES)))
    if await reader.readexactly(4) != bytes(4):
        raise LoginFailed("it refused the password of this boot")


class Greeting:
    """The server's half of a viewer's handshake, without a password: the ticket has authenticated the viewer."""

    first: Final = _VERSION

    def __init__(self) -> None:
        self._buffer = b""
        self._version = b""
        self.over = False
        """Whether the next byte of the viewer is its ClientInit."""

    def feed(self, data: bytes) -> tuple[bytes, bytes]:
        """Return the reply to bytes of the viewer, and what is behind the handshake. Raises NotRfb."""
        self._buffer += data
        reply = b""
        if not self._version and len(self._buffer) >= len(_VERSION):
            self._version, self._buffer = self._buffer[: len(_VERSION)], self._buffer[len(_VERSION) :]
            if not self._version.startswith(b"RFB 003."):
                raise NotRfb(f"version {self._version!r}")
            self.over = self._version == _OLDEST  # in which the server chooses the security type
            reply = _NONE.to_bytes(4, "big") if self.over else bytes([1, _NONE])
        if self._version and not self.over and self._buffer:
            if self._buffer[0] != _NONE:
                raise NotRfb(f"security type {self._buffer[0]}")
            self.over, self._buffer = True, self._buffer[1:]
            reply += bytes(4) if self._version == _VERSION else b""
        rest = self._buffer if self.over else b""
        self._buffer = self._buffer[len(rest) :]
        return reply, rest
