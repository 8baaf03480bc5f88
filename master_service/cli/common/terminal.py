"""All output of the command line.

Users, workers and masters wrote the texts: here they are made printable, and sentences get the command line's words.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Final

import typer

from master_service.cli.common.wording import for_terminal
from worker_service.contract.printable import printable, printable_lines


def _shown(text: str, *, of_file: bool = False) -> str:
    return printable(for_terminal(text, of_file=of_file))


_LONGEST_WORDS: Final = (63, 36, 24, 16, 12, 8)
"""Letters. Words up to the first of these lengths for which all columns fit into the terminal stay whole."""
_GAP: Final = 3
"""Blanks between two columns of a table."""


def column_widths(columns: Sequence[Sequence[str]], width: int) -> list[int | None]:
    """Return the width of each column of a table, so that no short word is cut; None where there is no room."""
    full = [max(map(len, texts), default=0) or 1 for texts in columns]
    words = [[len(word) for text in texts for word in text.split()] for texts in columns]
    for longest in _LONGEST_WORDS:
        found = [min(max(lengths, default=1), longest) for lengths in words]
        if (rest := width - sum(found) - _GAP * len(found)) >= 0:
            break
    else:
        return [None] * len(columns)
    # The columns that lack least come first, and those that lack more share what is left.
    for left, index in enumerate(sorted(range(len(full)), key=lambda at: full[at] - found[at])):
        more = min(full[index] - found[index], rest // (len(full) - left))
        found[index] += more
        rest -= more
    return list(found)


def say(text: str, *, of_file: bool = False) -> None:
    """Print one line. `of_file`: about a file of VMs."""
    sys.stdout.write(f"{_shown(text, of_file=of_file)}\n")
    sys.stdout.flush()


def warn(text: str, *, of_file: bool = False) -> None:
    """Print one line on stderr. `of_file`: about a file of VMs."""
    sys.stderr.write(f"{_shown(text, of_file=of_file)}\n")
    sys.stderr.flush()


def percent(done: int) -> None:
    """Show on a person's stderr how far a transfer is; at its end, nothing."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{done:3d} %" if done < 100 else "\r     \r")
        sys.stderr.flush()


def say_all(texts: Iterable[str]) -> None:
    """Print one line for each text."""
    sys.stdout.writelines(f"{printable(text)}\n" for text in texts)


def write(document: str) -> None:
    """Print a document for programs, which ends its lines itself."""
    sys.stdout.write(printable_lines(document))
    sys.stdout.flush()


def is_interactive() -> bool:
    """Return whether a person reads the output."""
    return sys.stdout.isatty()


def ask(question: str) -> str:
    """Ask a person for a word."""
    answer: str = typer.prompt(_shown(question), err=True)
    return answer


def ask_secret(question: str, *, confirm: bool) -> str:
    """Ask a person for a word that is not shown, twice with `confirm`."""
    answer: str = typer.prompt(_shown(question), hide_input=True, confirmation_prompt=confirm, err=True)
    return answer


def confirm(question: str) -> bool:
    """Ask a person yes or no."""
    return typer.confirm(_shown(question), err=True)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    header: bool = True,
    wide: bool = False,
    styles: Mapping[str, str] | None = None,
) -> None:
    """Print a table that fits the terminal, or one line per row if `wide` or without a terminal.

    `styles`: the style of cells with these texts.
    """
    titles, cells = [printable(column) for column in columns], [[_shown(cell) for cell in row] for row in rows]
    if wide or not is_interactive():
        sys.stdout.writelines(_lines([titles, *cells] if header else cells))
        return
    from rich import box, table  # noqa: PLC0415 - slow to import, and only for tables
    from rich.console import Console  # noqa: PLC0415 - as above
    from rich.text import Text  # noqa: PLC0415 - as above

    screen = Console(highlight=False)
    made = table.Table(box=box.SIMPLE if header else None, show_header=header, pad_edge=False)
    columns_of_cells = list(zip(titles, *cells, strict=True))
    for title, width in zip(titles, column_widths(columns_of_cells, screen.width), strict=True):
        made.add_column(Text(title), overflow="fold", width=width)
    for row in cells:
        # Text, not markup: a message may hold brackets.
        made.add_row(*(Text(cell, style=(styles or {}).get(cell, "")) for cell in row))
    screen.print(made)


def _lines(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() + "\n"
