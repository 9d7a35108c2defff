"""How far a benchmark is: a bar on a terminal, a line a step everywhere else."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


class Steps(Protocol):
    """Is told each step as it begins."""

    def begin(self, step: str) -> None:
        """The step before has ended, this one begins."""
        ...


class SilentSteps:
    """Says nothing."""

    def begin(self, step: str) -> None:
        """Ignore it."""


class PlainSteps:
    """Writes a line a step to stderr.

    Args:
        name: Of the benchmark.
        total: How many steps there will be.
    """

    def __init__(self, name: str, total: int) -> None:
        self._name = name
        self._total = total
        self._done = 0

    def begin(self, step: str) -> None:
        """Write the line."""
        self._done += 1
        print(f"{self._name} {self._done}/{self._total}: {step}", file=sys.stderr, flush=True)


class BarSteps:
    """Moves a bar of rich.

    It is drawn between the steps only: a thread that draws would be measured too.

    Args:
        bar: The bar, which does not refresh by itself.
        name: Of the benchmark.
        total: How many steps there will be.
    """

    def __init__(self, bar: Progress, name: str, total: int) -> None:
        self._bar = bar
        self._name = name
        self._begun = 0
        self._task = bar.add_task(name, total=total)

    def begin(self, step: str) -> None:
        """Draw it."""
        self._bar.update(
            self._task, completed=self._begun, description=f"{self._name}: {step}", refresh=True
        )
        self._begun += 1

    def end(self) -> None:
        """Draw the full bar."""
        self._bar.update(self._task, completed=self._begun, description=self._name, refresh=True)


@contextmanager
def showing(name: str, total: int) -> Iterator[Steps]:
    """Show the steps of a benchmark on stderr while the context lasts."""
    if not sys.stderr.isatty():
        yield PlainSteps(name, total)
        return
    columns = (
        TextColumn("{task.description}", justify="left"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False) as bar:
        steps = BarSteps(bar, name, total)
        yield steps
        steps.end()
