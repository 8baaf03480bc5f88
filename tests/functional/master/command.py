"""The command `saltern`, called in this process or started as its own, which takes a thousand times as long."""

import asyncio
import contextlib
import functools
import io
import os
import ssl
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from unittest import mock

import typer.main

from master_service import cli

Outcome = tuple[int, str, str]
"""Exit code, stdout, stderr."""
_made_once = functools.cache(typer.main.get_command)
"""The parsed signatures of all commands: typer takes longer for them than for any command."""
_read_once = functools.cache(ssl.create_default_context)
"""With the machine's certificates, which no test needs."""


async def called(words: Sequence[str], environment: Mapping[str, str], typed: str, folder: Path) -> Outcome:
    """Call it in a thread. It uses the globals of a process, so there is one call at a time."""
    return await asyncio.to_thread(_call, words, environment, typed, folder)


def _call(words: Sequence[str], environment: Mapping[str, str], typed: str, folder: Path) -> Outcome:
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        mock.patch.object(typer.main, "get_command", _made_once),
        mock.patch.object(ssl, "create_default_context", _read_once),
        mock.patch.object(sys, "argv", ["saltern", *words]),
        mock.patch.object(sys, "stdin", io.StringIO(typed)),
        mock.patch.dict(os.environ, environment, clear=True),
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            cli.main()
        except SystemExit as left:
            code = left.code or 0
    return code, out.getvalue(), err.getvalue()


async def started(words: Sequence[str], environment: Mapping[str, str], typed: str, folder: Path) -> Outcome:
    """Start it as a process."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from master_service.cli import main; main()",
        *words,
        env=dict(environment),
        cwd=folder,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate(typed.encode())
    return process.returncode, out.decode(), err.decode()
