"""How a command ends when something is wrong: words on stderr and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import IO, Any

import click

EXIT_FAILED = 1
"""What was asked for was tried and did not work."""

EXIT_MISTAKE = 2
"""What the operator wrote cannot work: configuration, port, file, missing package."""

EXIT_INTERRUPTED = 130
"""Ended by Ctrl-C: 128 and the number of SIGINT, as shells count."""


class Failure(click.ClickException):
    """Ends a command because of a mistake: one line for each thing that is wrong.

    Args:
        lines: What is wrong and what to do.
        label: Stands before each line; nothing before those that begin with a file and a
            line number, as editors expect them.
    """

    exit_code = EXIT_MISTAKE

    def __init__(self, lines: str | Sequence[str], *, label: str = "error: ") -> None:
        self.label = label
        self.lines = [lines] if isinstance(lines, str) else list(lines)
        super().__init__("\n".join(self.lines))

    def show(self, file: IO[Any] | None = None) -> None:
        """Write the lines to stderr."""
        for line in self.lines:
            click.echo(f"{click.style(self.label, fg='red')}{line}", err=True, file=file)


class Unsuccessful(Failure):
    """Ends a command because something right was tried and did not work."""

    exit_code = EXIT_FAILED
