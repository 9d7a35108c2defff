"""Writing for people: tables and colours on a terminal, plain text everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click

_CONTROLS = {number: None for number in (*range(32), *range(127, 160)) if chr(number) not in "\n\t"}


def for_terminal(text: str) -> str:
    """Text that a model wrote, without what would steer a terminal."""
    return text.translate(_CONTROLS) if sys.stdout.isatty() else text


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows to stdout; aligned columns without lines when nobody looks at a terminal.

    Lines within a cell stand below each other on a terminal, and behind each other in text
    for pipes, which has one line for each row.
    """
    if sys.stdout.isatty():
        _print_rich_table(columns, rows)
        return
    rows = [[", ".join(cell.splitlines()) for cell in row] for row in rows]
    widths = [
        max(len(line[index]) for line in (columns, *rows)) for index in range(len(columns) - 1)
    ]
    for line in (columns, *rows):
        padded = [cell.ljust(width) for cell, width in zip(line[:-1], widths, strict=True)]
        click.echo("  ".join([*padded, line[-1]]).rstrip())


def _print_rich_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console  # noqa: PLC0415 - a tenth of a second, for terminals only
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        # Text, not str: brackets in a message are no markup.
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)
