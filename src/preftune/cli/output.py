"""What every command prints: JSON, tables and lines."""

import json
import os
from collections.abc import Collection, Mapping, Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from preftune.terminal import clean_terminal

PIPED_WIDTH = 120
"""Columns of a table that goes into a pipe or a file, unless COLUMNS names a number."""


def print_json(content: object) -> None:
    print(json.dumps(content, indent=2))  # ASCII: what would command a terminal stays an escape


def make_console(piped_width: int = PIPED_WIDTH) -> Console:
    """Standard output, as wide as the terminal."""
    console = Console(highlight=False)
    if console.is_terminal or os.environ.get("COLUMNS", "").isdecimal():
        return console
    return Console(highlight=False, width=piped_width)


def make_table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]] = (),
    *,
    unbroken: Collection[str] = (),
    widths: Mapping[str, int | None] = {},
    title: str | None = None,
) -> Table:
    """A table in the style of all commands. Cells that are strings lose what would command a terminal.

    Columns in `unbroken` are never wrapped; `widths` fixes the widths of some columns.
    """
    table = Table(
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
    )
    for heading in headings:
        table.add_column(heading, overflow="fold", no_wrap=heading in unbroken, width=widths.get(heading))
    for cells in rows:
        table.add_row(*(Text(clean_terminal(cell)) if isinstance(cell, str) else cell for cell in cells))
    return table


def print_table(
    headings: Sequence[str], rows: Sequence[Sequence[str | Text]], title: str | None = None
) -> None:
    make_console().print(make_table(headings, rows, title=title))


def print_line(console: Console, text: str, style: str = "") -> None:
    """A line that a terminal wraps and a pipe does not."""
    console.print(Text(clean_terminal(text), style=style), soft_wrap=True)
