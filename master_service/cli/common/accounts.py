"""Shared by the commands about accounts: paths, passwords, and files with tokens."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from master_service.cli.common import terminal
from master_service.cli.common.client import Failure

Lifetime = Annotated[float | None, typer.Option("--expires-in", min=1, help="Lifetime of the token in seconds.")]


def user_path(name: str) -> str:
    """Return the path of a user."""
    return f"/users/{quote(name, safe='')}"


def read_password(prompt: str, *, confirm: bool = False) -> str:
    """Read a password from the terminal or from stdin. Every user of the machine could read an argument."""
    if sys.stdin.isatty():
        return terminal.ask_secret(prompt, confirm=confirm)
    return sys.stdin.readline().rstrip("\n")


def keep_token(path: Path, token: str) -> None:
    """Write a token atomically, readable only by its owner."""
    partial = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{token}\n")
        partial.replace(path)
    except OSError as err:
        raise Failure(f"Cannot write the token to {path}: {err.strerror}.") from err
