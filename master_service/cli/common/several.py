"""The same for several VMs: each is tried, a failure takes one line, and the exit code is the largest of all."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

import typer

from master_service.cli.common import output, terminal
from master_service.cli.common.client import Client, Exit, Failure
from master_service.cli.common.options import vm_path
from master_service.cli.common.output import Format, JsonObject

Given = TypeVar("Given")
_LISTED: Final = (Format.JSON, Format.YAML)
"""Forms that print one list for several VMs."""


class Tries:
    """One command for the VMs that the user named. With only one name, its failure is the command's."""

    def __init__(self, names: Iterable[str], form: Format) -> None:
        self.names = list(dict.fromkeys(names))
        self._form = form
        self._is_single = len(self.names) == 1
        self._gathers = form in _LISTED and not self._is_single
        self._results: list[JsonObject] = []
        self._worst = Exit.OK

    def each(self, given: Iterable[Given], act: Callable[[Given], JsonObject | None]) -> list[JsonObject]:
        """Do this for each, and return the results of those that did not fail. Raises Failure for a single one."""
        return [result for one in given if (result := self._try(one, act)) is not None]

    def _try(self, given: Given, act: Callable[[Given], JsonObject | None]) -> JsonObject | None:
        try:
            return act(given)
        except Failure as failure:
            if self._is_single:
                raise
            terminal.warn(f"saltern: {failure}")
            self._worst = max(self._worst, failure.exit_code)
            return None

    def done(self, vm: JsonObject, message: str = "") -> None:
        """Print the result for one VM."""
        if self._gathers:
            self._results.append(vm)
        else:
            output.done(vm, message, self._form)

    def dry_run(self, answer: JsonObject) -> None:
        """Print the result of a dry run for one VM. Raises Failure if its worker would refuse a start."""
        if self._gathers:
            self._results.append(answer)
            output.require_fit(answer)
        else:
            output.print_dry_run(answer, self._form)

    def end(self) -> None:
        """Print what was gathered. Raises Exit if one of them failed."""
        if self._gathers:
            output.listing(self._results, self._form, (), key="name")
        if self._worst:
            raise typer.Exit(self._worst)


def confirm_destroy(client: Client, names: Iterable[str], *, yes: bool) -> None:
    """Ask a person before VMs are destroyed. Raises Failure unless the answer is yes."""
    if yes or not sys.stdin.isatty():
        return
    found = ", ".join(described for name in dict.fromkeys(names) if (described := _described(client, name)))
    if found and not terminal.confirm(f"Destroy {found}? All disks are discarded; nothing is saved."):
        raise Failure("Nothing was changed.")


def _described(client: Client, name: str) -> str:
    """Return a VM and its status, or "" if there is none: the destroy itself will say so."""
    try:
        vm = client.get(vm_path(name))
    except Failure as failure:
        if failure.exit_code is not Exit.NOT_FOUND:
            raise
        return ""
    return f"{vm['name']} ({vm['status']})"
